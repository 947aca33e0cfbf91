"""A new campaign that begins with the first rounds of another one and goes on with another config.

The shared artefacts are hard links where the file system has them (copies elsewhere): nothing ever writes
into a committed artefact. `branch.json` in the new run says where it came from; rounds up to its number keep
the config that they were made with, all later ones follow the new one.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loop.config import changed_keys
from loop.config_file import LoadedConfig, load_config
from loop.errors import UserError
from loop.models import check_models
from loop.pruned import read_pruned
from loop.sizes import in_words
from loop.stages import EVERY_ROUND, FIRST_ROUND, plan
from loop.store import Store, read_manifest, write_atomically
from loop.trackers import check_trackers

FILE = "branch.json"
# what rounds before and after have in common, or their curves could not be compared
_MEASURED = ("seed", "data", "generator", "evaluate", "held_out_judge")
COMMON = (*_MEASURED, *(f"judge.{k}" for k in ("type", "model", "dimensions")))


@dataclass(frozen=True)
class Origin:
    """The run that a branch came from, the last round that they share, and that round's last fingerprint."""

    run: str
    round: int
    fingerprint: str


def read_origin(root: Path) -> Origin | None:
    """None for a run that is no branch. Raises UserError for a damaged file."""
    path = root / FILE
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        raise UserError(f"{path} is damaged; branch again into another --dir") from None


def branch(source: Path, last_round: int, root: Path, overrides: Sequence[str]) -> LoadedConfig:
    """Make the run `root` of rounds 0 to `last_round` of `source`; returns the config to go on with.

    `root` appears whole or not at all. Raises UserError for a round that is not finished in `source`, a
    `root` that exists, and overrides of what all rounds must have in common.
    """
    store = Store(source)
    finished = _finished_rounds(store)
    if last_round not in finished:
        have = ", ".join(map(str, finished)) or "none"
        raise UserError(f"--from {last_round}: {source} has no such finished round; it has {have}")
    loaded = load_config(source / "resolved.json", [f"name={root.name}", *overrides])
    _check_common(source, loaded)
    check_models(loaded.config)  # as `retake run` does, before anything is there
    check_trackers(loaded.config.track)
    if loaded.config.rounds < last_round:
        raise UserError(f"rounds is {loaded.config.rounds}, but {last_round} are shared; give --rounds more")
    if root.exists():
        raise UserError(f"{root} exists; {_how_to_go_on(source, last_round, root)}choose another --dir")
    steps = plan(last_round)
    _check_not_pruned(store, last_round)
    for step in steps:
        store.check_hashes(store.artefact(*step), may_be_pruned=True)  # damage must not spread
    last = read_manifest(store.artefact(*steps[-1]))
    assert last is not None, "a finished round is committed"

    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for step in steps:
        shutil.copytree(
            store.artefact(*step), Store(part).artefact(*step), copy_function=_link, symlinks=True
        )
    origin = Origin(str(source.resolve()), last_round, last.fingerprint)
    write_atomically(part / FILE, json.dumps(asdict(origin), indent=1) + "\n")
    # as its first launch writes them: from here on the run can be gone on with, whatever ends this process
    write_atomically(part / "campaign.yaml", loaded.text)
    write_atomically(part / "resolved.json", loaded.config.model_dump_json(indent=2) + "\n")
    (part / "lock").touch()  # makes it a run
    os.replace(part, root)
    Store(root).event("branched", run=origin.run, round=last_round)
    return loaded


def _how_to_go_on(source: Path, last_round: int, root: Path) -> str:
    """For whoever repeats the command because it was interrupted."""
    origin = read_origin(root)
    if origin is None or (origin.run, origin.round) != (str(source.resolve()), last_round):
        return ""
    return f"`retake run {root / 'resolved.json'} --dir {root}` goes on with that branch; else "


def _check_not_pruned(store: Store, last_round: int) -> None:
    """Raises UserError if a round after `last_round` would read what was pruned."""
    from loop.prune import read_later  # it walks through the campaign, whose runner reads a branch's origin

    lines = [
        f"  {artefact.relative_to(store.root)}: {len(gone):,} files, {in_words(sum(gone.values()))}"
        for artefact in sorted(read_later(store, last_round))
        if (gone := read_pruned(artefact))
    ]
    if lines:
        raise UserError(
            f"--from {last_round}: the next round would read what was pruned from {store.root}:\n"
            + "\n".join(lines)
            + "\nbranch from a later round, or bring these files back from a copy and remove pruned.json"
        )


def _finished_rounds(store: Store) -> list[int]:
    """0, 1, … up to the first round with a stage that is not committed."""
    finished: list[int] = []
    stages: tuple[str, ...] = FIRST_ROUND
    while all(read_manifest(store.artefact(len(finished), stage)) is not None for stage in stages):
        finished.append(len(finished))
        stages = EVERY_ROUND
    return finished


def _check_common(source: Path, loaded: LoadedConfig) -> None:
    before = load_config(source / "resolved.json").config
    changed = changed_keys(before.part(COMMON), loaded.config.part(COMMON))
    if changed:
        lines = "\n".join(f"  {key}" for key in changed)
        raise UserError(
            f"a branch has these in common with {source}, so that its curves go on:\n{lines}\n"
            "leave them as they were, or start a new campaign"
        )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
