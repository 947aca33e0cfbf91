"""`retake prune`: frees clips and weights that nothing reads any more. Tables, metrics and decisions stay.

What later rounds read is not listed here. The campaign's own order (loop/campaign.py: run_rounds) is walked
through once more, beyond the last round that has begun; stages to come run nothing and note their inputs.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loop.campaign import run_rounds
from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.progress import Display
from loop.pruned import FILE, read_pruned
from loop.runner import StageRunner
from loop.sizes import in_words
from loop.stages import STAGES, plan
from loop.status import judge_in_force, read_status
from loop.store import MANIFEST, Store, read_manifest, write_atomically

CLIPS = (".mp4",)
WEIGHTS = (".safetensors", ".bin", ".pt")  # step checkpoints (.pt) go with a stage's commit already


@dataclass(frozen=True)
class Prunable:
    """Files of one artefact that may go: bytes by path below it.

    links: those of the bytes that a hard link of a branch, or of the run it came from, keeps on disk.
    """

    artefact: Path
    files: dict[str, int]
    links: int

    @property
    def size(self) -> int:
        return sum(self.files.values())


class _ReadOnly(Store):
    def event(self, event: str, **fields: Any) -> None:
        """None: a walk leaves no trace in the run."""


class _Walk(StageRunner):
    """Goes through the rounds and runs nothing. `reads`: what the stages that are not committed will read.

    The gates to come decide as `assumed` says, a folder with a gate.json.
    """

    def __init__(self, config: CampaignConfig, store: Store, last_round: int, assumed: Path):
        super().__init__(config, store, STAGES, Display(0, Console(quiet=True)))
        self.last_round, self.assumed = last_round, assumed
        self.reads: set[Path] = set()

    def begin_round(self, round: int) -> None:
        pass

    def run(self, round: int, name: str, **inputs: Path | None) -> Path:
        artefact = self.store.artefact(round, name)
        if round <= self.last_round and (artefact / MANIFEST).is_file():
            return artefact
        self.reads |= {path for path in inputs.values() if path is not None and path != self.assumed}
        return self.assumed


def read_later(store: Store, last_round: int) -> set[Path]:
    """Committed artefacts that a stage reads which is yet to come, if rounds up to `last_round` have begun.

    Whatever the gates to come decide: what is in force after the next round is in force now or made in it, so
    one round more than have begun shows all. What is in force stays even if no round follows.
    """
    # as if its patience were raised, or the walk could end before the round that reads
    onward = {"rounds": last_round + 1, "patience": None}
    config = load_config(store.root / "resolved.json").config.model_copy(update=onward)
    found: set[Path] = set()
    for use, keep in itertools.product((True, False), repeat=2):
        with tempfile.TemporaryDirectory(prefix="retake-") as folder:
            assumed = Path(folder)
            (assumed / "gate.json").write_text(json.dumps({"use": use, "keep": keep}))
            walk = _Walk(config, _ReadOnly(store.root), last_round, assumed)
            run_rounds(walk)
            found |= walk.reads
    return found


def what_can_go(store: Store, keep_last: int = 1) -> list[Prunable]:
    """Clips and weights that no later stage, no branch from the last round and no report reads.

    Of the last `keep_last` rounds that have begun nothing goes. Files that an interrupted prune has named
    already are among them.
    """
    last = store.last_round()
    keep = read_later(store, last) | _in_force(store.root)
    shown = _shown(store.root)
    found = []
    for round, stage in plan(last):
        artefact = store.artefact(round, stage)
        manifest = read_manifest(artefact)
        if manifest is None:
            continue
        gone = read_pruned(artefact)
        names = set(gone)
        if round <= last - keep_last and artefact not in keep:
            names |= {
                name
                for name in manifest.files
                if name.endswith(CLIPS + WEIGHTS) and (stage, name) not in shown
            }
        if entry := _present(artefact, sorted(names)):
            found.append(entry)
    return found


def prune(store: Store, going: Sequence[Prunable]) -> None:
    """Free the files. A kill at any point leaves what the next prune finishes; the run is locked by now."""
    for entry in going:
        files = dict(sorted((read_pruned(entry.artefact) | entry.files).items()))
        write_atomically(entry.artefact / FILE, json.dumps({"files": files}, indent=1) + "\n")
        for name in entry.files:
            (entry.artefact / name).unlink(missing_ok=True)
        for folder in sorted({path.parent for path in map(Path, entry.files)}, reverse=True):
            _remove_if_empty(entry.artefact / folder)
    store.event(
        "pruned", files=sum(len(entry.files) for entry in going), bytes=sum(entry.size for entry in going)
    )


def write_out(going: Sequence[Prunable]) -> Iterator[str]:
    """One line an artefact, and what comes of it all."""
    for entry in going:
        round, stage = entry.artefact.parent.name, entry.artefact.name
        yield f"{round}  {stage:<12} {len(entry.files):>8,} files {in_words(entry.size):>10}"
    num, size = sum(len(entry.files) for entry in going), sum(entry.size for entry in going)
    if not num:
        yield "nothing to free: later rounds, branches from the last one or the report need all that is left"
        return
    yield f"{num:,} files, {in_words(size)}; tables, metrics and decisions stay"
    if linked := sum(entry.links for entry in going):
        yield f"{in_words(linked)} of it stay on disk until the runs that share them are pruned, too"


def _in_force(root: Path) -> set[Path]:
    store, status = Store(root), read_status(root)
    kept = {store.artefact(status.generator_in_force, stage) for stage in ("update", "evaluate")}
    judge = judge_in_force(root).trained
    return kept | ({judge} if judge else set())


def _shown(root: Path) -> set[tuple[str, str]]:
    """(stage, file) of every clip that the report shows.

    Of any round: which of them have a column changes with their number, and their files have one name.
    """
    from loop.report import shown_clips

    shown = (path.relative_to(root).parts for path in shown_clips(root))
    return {(stage, "/".join(name)) for _, stage, *name in shown}


def _present(artefact: Path, names: Sequence[str]) -> Prunable | None:
    """The files that are there: one that is lost otherwise is damage, and stays so."""
    files: dict[str, int] = {}
    links = 0
    for name in names:
        try:
            found = os.stat(artefact / name)
        except FileNotFoundError:
            continue
        files[name] = found.st_size
        links += found.st_size if found.st_nlink > 1 else 0
    return Prunable(artefact, files, links) if files else None


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
