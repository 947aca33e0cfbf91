"""Which part every clip belongs to: groups of equal source or caption never meet across parts.

Captions that differ in case or spaces alone are equal: what one of them trains, the other must not examine.
The prepare stage writes the parts down once; nothing assigns them again when the folder grows.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Hashable, Mapping, Sequence

from loop.config import PARTS, SplitConfig
from loop.errors import UserError
from loop.held_out import plain
from loop.metadata import Row, Skip


def assign_parts(
    rows: Sequence[Row], split: SplitConfig, seed: int, skips: Sequence[Skip] = ()
) -> dict[str, str]:
    """The part of every file name; files that an explicit split leaves out are absent.

    Numbers in the split are groups: they are guaranteed, in an order hashed from the seed, and what is left
    over joins training. A part given in metadata.csv holds for its whole group. Raises UserError if a quota
    cannot be met (with the number of groups that are missing; `skips` help to explain it) or if a group
    would meet itself across parts.
    """
    groups = _groups(rows)
    if isinstance(split.train, list):
        return _explicit_parts(groups, {part: getattr(split, part) for part in PARTS}, skips)
    quotas: dict[str, int] = {part: getattr(split, part) for part in PARTS}
    given: dict[str, list[list[Row]]] = {part: [] for part in PARTS}
    free: list[list[Row]] = []
    for group in groups:
        part = _one_part(group, {row.file_name: row.part for row in group if row.part})
        (given[part] if part else free).append(group)
    free.sort(key=lambda group: _rank(seed, group))
    for part in PARTS:
        wanted = max(0, quotas[part] - len(given[part]))
        if wanted > len(free):
            raise UserError(_too_few(part, quotas, given, len(free), skips))
        given[part] += free[:wanted]
        free = free[wanted:]
    given["train"] += free
    return {row.file_name: part for part in PARTS for group in given[part] for row in group}


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows joined by equal source or equal caption, each group sorted by source."""
    groups: dict[int, list[Row]] = {}
    for number, row in zip(join([(row.source, row.caption) for row in rows]), rows, strict=True):
        groups.setdefault(number, []).append(row)
    return [sorted(group, key=lambda row: (row.source, row.file_name)) for group in groups.values()]


def join(clips: Sequence[tuple[str, str]]) -> list[int]:
    """A number for the group of each clip, given as (source, caption).

    Clips of equal source or caption are of one group, transitively (union-find).
    """
    leader = list(range(len(clips)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first: dict[Hashable, int] = {}
    for i, (source, caption) in enumerate(clips):
        for key in (("source", source), ("caption", plain(caption))):
            leader[find(i)] = find(first.setdefault(key, i))
    return [find(i) for i in range(len(clips))]


def _one_part(group: list[Row], part_of: Mapping[str, str]) -> str:
    """The only part among a group's files, or "" if none has one. Raises UserError if there are two."""
    placed = [row for row in group if row.file_name in part_of]
    for row in placed[1:]:
        if part_of[row.file_name] != part_of[placed[0].file_name]:
            one, other = placed[0], row
            raise UserError(
                f"metadata.csv, lines {one.line} and {other.line}: {one.file_name} is in part "
                f"{part_of[one.file_name]}, {other.file_name} in part {part_of[other.file_name]}, but they "
                "share a source or a caption (maybe through other rows); put both into the same part"
            )
    return part_of[placed[0].file_name] if placed else ""


def _explicit_parts(
    groups: list[list[Row]], files: Mapping[str, list[str]], skips: Sequence[Skip]
) -> dict[str, str]:
    part_of = {name: part for part in PARTS for name in files[part]}
    names = {row.file_name for group in groups for row in group}
    skipped = {skip.file: skip.reason for skip in skips}
    for name, part in part_of.items():
        if name not in names and name not in skipped:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; list only files of metadata.csv"
            raise UserError(f"data.split.{part}: {name!r} is not in metadata.csv{hint}")
    for part in PARTS:
        if not names & set(files[part]):
            reasons = "; ".join(f"{name}: {skipped[name]}" for name in files[part])
            raise UserError(
                f"part {part} needs 1 clip, 0 left ({reasons}); list another under data.split.{part}"
            )
    for group in groups:
        _one_part(group, part_of)
    return {name: part for name, part in part_of.items() if name in names}


def _too_few(
    part: str,
    quotas: Mapping[str, int],
    given: Mapping[str, list[list[Row]]],
    num_free: int,
    skips: Sequence[Skip],
) -> str:
    left = len(given[part]) + num_free
    # parts before this one are filled, so what they still lack is nothing
    missing = sum(max(0, quotas[p] - len(given[p])) for p in PARTS) - num_free
    text = (
        f"part {part} needs {quotas[part]} groups of clips, {left} left; add at least {missing} more clips, "
        f"each with a source and a caption of its own, or lower data.split.{part}"
    )
    if skips:
        text += f" (skipped clips: {len(skips)}; the first: {skips[0].file}, {skips[0].reason})"
    return text


def _rank(seed: int, group: list[Row]) -> str:
    return hashlib.sha256(f"{seed} {group[0].source} {group[0].caption}".encode()).hexdigest()
