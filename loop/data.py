"""Anchors and prompts: from a folder of real clips, or the embedded world, to clips with a split part."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.clips import read_conformed
from loop.config import PARTS, ClipConfig, DataConfig
from loop.errors import UserError
from loop.held_out import plain
from loop.human_pairs import HumanPair, read_human_pairs
from loop.metadata import Row, Skip, read_metadata
from loop.splits import assign_parts

__all__ = [
    "PARTS",
    "Anchor",
    "Prompt",
    "Row",
    "Skip",
    "assign_parts",
    "check_categories",
    "check_videos",
    "load_anchors",
    "load_human_pairs",
    "prompt_id_of",
    "read_metadata",
    "read_prompts",
]


@dataclass(frozen=True)
class Anchor:
    """A real clip with its split part. path: the video file, as given until prepare has stored it."""

    id: str
    path: Path
    caption: str
    source: str
    category: str
    part: str


@dataclass(frozen=True)
class Prompt:
    """A text to film. Its part is that of the anchors it captions; prompts from a file are for training."""

    id: str
    text: str
    category: str
    part: str


def load_anchors(
    data: DataConfig, scratch: Path, seed: int, other_categories: Collection[str] = ()
) -> tuple[list[Anchor], list[Skip]]:
    """The anchors that the configuration names, with their parts, in the order of metadata.csv.

    The embedded world's are written into `scratch` first. Every video is decoded once, so that one which
    cannot be used is a Skip here and no failure later. `other_categories` are those that `data.categories`
    may name though no anchor is of them. Raises UserError as read_metadata and assign_parts do, and for an
    unknown category.
    """
    folder = Path(data.anchors).expanduser()
    if data.anchors == "embedded":
        from loop.embedded.anchors import spread, write_anchors

        folder = scratch
        num = data.num_anchors
        write_anchors(
            folder, 2 if num is None else spread(num if isinstance(num, int) else num.model_dump()), seed
        )
    rows, skips = read_metadata(folder)
    left_out: list[Skip] = []
    if data.categories is not None:
        check_categories(data.categories, {r.category for r in rows} | set(other_categories))
        left_out = [
            Skip(r.file_name, f"line {r.line}: category {r.category!r} is not in data.categories")
            for r in rows
            if r.category not in data.categories
        ]
        rows = [r for r in rows if r.category in data.categories]
    rows, unusable = check_videos(folder, rows, data.clip)
    skips += unusable
    parts = assign_parts(rows, data.split, seed, [*skips, *left_out])
    if left_out:  # as wanted: one line, not one a clip
        skips.append(Skip("metadata.csv", f"{len(left_out)} clips of categories not in data.categories"))
    skips += [Skip(r.file_name, "not listed in data.split") for r in rows if r.file_name not in parts]
    anchors = [
        Anchor(
            _anchor_id(r.file_name), folder / r.file_name, r.caption, r.source, r.category, parts[r.file_name]
        )
        for r in rows
        if r.file_name in parts
    ]
    return anchors, skips


def check_videos(folder: str | Path, rows: Sequence[Row], clip: ClipConfig) -> tuple[list[Row], list[Skip]]:
    """Rows whose video decodes and is long enough, and a Skip with the reason for each other one."""
    good: list[Row] = []
    skips: list[Skip] = []
    for row in rows:
        path = Path(folder) / row.file_name
        try:
            read_conformed(
                path,
                num_frames=clip.num_frames,
                height=clip.height,
                width=clip.width,
                target_fps=clip.fps,
            )
            good.append(row)
        except ValueError as error:
            # without the folder: the reason is stored, and an artefact must not depend on where it was made
            skips.append(Skip(row.file_name, f"line {row.line}: {str(error).removeprefix(f'{path}: ')}"))
    return good, skips


def load_human_pairs(data: DataConfig) -> tuple[list[HumanPair], list[Skip], set[str]]:
    """The pairs of `data.human_pairs`, those of other categories left out, and all categories in the file.

    The Skips say which pairs lack a video file, and how many are of other categories. Raises UserError as
    read_human_pairs does.
    """
    if data.human_pairs is None:
        return [], [], set()
    file = Path(data.human_pairs).expanduser()
    pairs = read_human_pairs(file, needs_category=data.categories is not None)
    categories = {p.category for p in pairs}
    kept, skips = [], []
    for pair in pairs:
        missing = [path for path in (pair.path_a, pair.path_b) if not (file.parent / path).is_file()]
        if data.categories is not None and pair.category not in data.categories:
            continue
        if missing:
            skips.append(Skip(missing[0], f"{pair.where}: no such video file"))
        else:
            kept.append(pair)
    left_out = len(pairs) - len(kept) - len(skips)
    if left_out:
        skips.append(Skip(file.name, f"{left_out} pairs of categories not in data.categories"))
    return kept, skips, categories


def check_categories(wanted: Sequence[str], known: Collection[str]) -> None:
    """Raises UserError for a category that nothing is of, naming the nearest that there is."""
    names = sorted(set(known) - {""})
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
            raise UserError(
                f"data.categories: {name!r} is the category of no clip; {hint} (see column category)"
            )


def read_prompts(
    anchors: Sequence[Anchor], further: str | None = None, categories: Sequence[str] | None = None
) -> list[Prompt]:
    """One Prompt per distinct caption, with the caption's part, then those that `data.prompts` names.

    `further` is a text file, one prompt a line, or "embedded". Its prompts join training, unless they are
    captions, which keep their part; one that is a held-out caption but for case and spaces is left out, as
    are blank lines and lines that start with #. Raises UserError if the file cannot be read, or if there are
    `categories` to choose: a line of text says none.
    """
    if further is not None and categories is not None:
        raise UserError(
            "data.prompts: prompts from a file have no category, by which data.categories chooses; "
            "leave one of the two keys out"
        )
    prompts: dict[str, Prompt] = {}
    for anchor in anchors:
        prompt = Prompt(prompt_id_of(anchor.caption), anchor.caption, anchor.category, anchor.part)
        known = prompts.setdefault(anchor.caption, prompt)
        assert known.part == anchor.part, f"caption in two parts: {anchor.caption!r}"
    held_out = {plain(prompt.text) for prompt in prompts.values() if prompt.part != "train"}
    for text in _further_prompts(further) if further is not None else []:
        if plain(text) in held_out:
            continue
        prompts.setdefault(text, Prompt(prompt_id_of(text), text, "", "train"))
    return list(prompts.values())


def _further_prompts(source: str) -> list[str]:
    if source == "embedded":
        from loop.embedded.anchors import training_captions

        return training_captions()
    try:
        lines = Path(source).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.prompts: cannot read {source} ({error}); give a UTF-8 text file, one prompt a line"
        ) from None
    return [text for text in (line.strip() for line in lines) if text and not text.startswith("#")]


def _anchor_id(file_name: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(file_name).stem).strip("-")[:40]
    return f"{stem}-{hashlib.sha256(file_name.encode()).hexdigest()[:8]}"


def prompt_id_of(text: str) -> str:
    return f"prompt-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
