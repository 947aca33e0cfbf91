"""Hashes every committed artefact of a run and names each file that is not what was committed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UserError
from loop.pruned import FILE as PRUNED
from loop.pruned import read_pruned
from loop.sizes import in_words
from loop.stages import STAGES, plan
from loop.store import MANIFEST, Manifest, Store, read_manifest, what_was_edited


@dataclass(frozen=True)
class Verified:
    """damage: one line for each damaged file, which begins with its path in the run.

    num_files, num_bytes: without what was pruned, which is no damage.
    """

    num_artefacts: int
    num_files: int
    num_bytes: int
    num_pruned: int
    pruned_bytes: int
    damage: list[str]


def verify(root: Path) -> Verified:
    """Read every file of every artefact in `root`. Changes nothing, needs no lock, leaves out work under way.

    Found are: files that are missing, changed or not listed, folders without a manifest, manifests that are
    damaged or edited (their fingerprint no longer follows from them), inputs that are in the run no more, and
    stages that are gone though later ones are there.
    """
    store = Store(root)
    known: dict[Path, Manifest] = {}
    damage: list[str] = []
    num_files = num_bytes = num_pruned = pruned_bytes = 0
    for folder in _folders(root):
        name = folder.relative_to(root).as_posix()
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            damage.append(f"{name}/{MANIFEST}: {error}")
            continue
        if manifest is None:
            damage.append(f"{name}: has no {MANIFEST}, so it was never committed")
            continue
        known[folder] = manifest
        damage += [f"{name}/{MANIFEST}: {what}" for what in _edited(folder, manifest)]
        try:
            gone = read_pruned(folder)
        except UserError as error:
            damage.append(f"{name}/{PRUNED}: {error}")
            continue
        for path, what in store.damaged_files(folder, manifest):
            damage.append(f"{path.relative_to(root).as_posix()}: {what}")
        num_files += len(manifest.files) - len(gone)
        num_bytes += sum(file["size"] for file in manifest.files.values()) - sum(gone.values())
        num_pruned += len(gone)
        pruned_bytes += sum(gone.values())
    damage += [f"{p.relative_to(root).as_posix()}/{MANIFEST}: {what}" for p, what in _strangers(known)]
    damage += [f"{p.relative_to(root).as_posix()}: {what}" for p, what in _gaps(store, known)]
    return Verified(len(known), num_files, num_bytes, num_pruned, pruned_bytes, damage)


def _folders(root: Path) -> Iterator[Path]:
    for folder in sorted(root.glob("round-*/*")):
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder


def _edited(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A manifest that does not belong here, or that is not as it was committed."""
    if what := what_was_edited(folder, manifest):
        yield what
    elif manifest.stage not in STAGES:
        yield f"{manifest.stage} is no stage"


def _strangers(known: dict[Path, Manifest]) -> Iterator[tuple[Path, str]]:
    """Inputs that no artefact of the run has: one was made again, or comes from another run."""
    here = {manifest.fingerprint for manifest in known.values()}
    for folder, manifest in known.items():
        for name, mark in manifest.inputs.items():
            if mark not in here:
                yield folder, f"its input {name} ({mark[:12]}) is no artefact of this run"


def _gaps(store: Store, known: dict[Path, Manifest]) -> Iterator[tuple[Path, str]]:
    """Stages are committed one after the other, so each one before the last was there."""
    artefacts = [store.artefact(*step) for step in plan(store.last_round())]
    last = max((i for i, artefact in enumerate(artefacts) if artefact in known), default=0)
    for artefact in artefacts[:last]:
        if not artefact.exists():
            yield artefact, f"is missing, but {artefacts[last].relative_to(store.root)}, made later, is there"


def summary(found: Verified) -> str:
    seen = f"{found.num_artefacts} artefacts, {found.num_files} files, {in_words(found.num_bytes)}"
    if found.num_pruned:
        seen += f" ({found.num_pruned} files, {in_words(found.pruned_bytes)}, were pruned)"
    return f"{seen}: " + (f"{len(found.damage)} damaged" if found.damage else "all as committed")
