"""The run directory: artefacts and their manifests, the commit, the event log.

An artefact is a directory round-NNN/STAGE with a manifest.json. Work goes on in round-NNN/.work-STAGE, which
survives a crash; `commit` hashes the files, writes the manifest last and renames. The manifest is the commit.
"""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.lock import RunLock
from loop.pruned import FILE as PRUNED
from loop.pruned import read_pruned

SCHEMA = (
    1  # raise it when the meaning of an artefact's files changes: older runs then stop with a clear message
)
MANIFEST = "manifest.json"
SCRATCH = "_scratch"  # whatever has this name inside a work directory is never part of the artefact
LIBRARIES = (
    *("retake", "torch", "torchvision", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("scikit-learn", "numpy", "av", "opencv-python-headless", "pyarrow"),
)

_MANY_FILES, _FLUSHED_AT_ONCE = 256, 16
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRIAL_BYTES = 2**20

DiskUsage = Callable[[Path], Any]  # as shutil.disk_usage: an object with `.free` in bytes


@dataclass(frozen=True)
class Manifest:
    """What made an artefact, and what is in it. Holds no times: the same work gives the same bytes.

    `config` is the slice of the configuration that the fingerprint covers, `inputs` maps each input's name to
    its fingerprint, `files` maps each relative path to {"size": bytes, "sha256": hex}. `seal` is the sha256
    of the manifest's text with an empty seal, so that an edit by hand is noticed; None in older runs.
    """

    stage: str
    round: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    environment: dict[str, Any]
    files: dict[str, dict[str, Any]]
    schema: int = SCHEMA
    seal: str | None = None


def fingerprint(stage: str, round: int, config: dict[str, Any], inputs: dict[str, str]) -> str:
    """sha256 of everything that decides a stage's result."""
    covered = {"schema": SCHEMA, "stage": stage, "round": round, "config": config, "inputs": inputs}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def environment(threads: int | None) -> dict[str, Any]:
    """What may change bytes without being part of the config: recorded and warned about, never an error."""
    versions: dict[str, Any] = {"threads": threads}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def write_atomically(path: Path, text: str) -> None:
    """The file is at all times the old one or the new one, never a part of either."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    _flush(beside)
    os.replace(beside, path)
    _flush(path.parent)


def read_manifest(artefact: Path) -> Manifest | None:
    """None where nothing is committed. Raises UserError for a damaged manifest or another version's."""
    path = artefact / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Manifest)}
        if data["schema"] != SCHEMA or not data.keys() <= known:
            raise UserError(_of_another_version(path, data["schema"], data["environment"]))
        if not _is_well_formed(data):
            raise TypeError
        return Manifest(**data)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; {how_to_redo(artefact)}") from None


def _is_well_formed(data: dict[str, Any]) -> bool:
    """Whether hands have left every value what it must be for the rest to read it."""
    kinds = {"stage": str, "round": int, "fingerprint": str, "config": dict, "inputs": dict}
    kinds |= {"environment": dict, "files": dict}
    return (
        all(isinstance(data[name], kind) for name, kind in kinds.items())
        and isinstance(data.get("seal"), str | None)
        and all(isinstance(mark, str) for mark in data["inputs"].values())
        and all(isinstance(f["size"], int) and isinstance(f["sha256"], str) for f in data["files"].values())
    )


def _of_another_version(path: Path, schema: int, made_by: dict[str, Any]) -> str:
    theirs, ours = made_by.get("retake") or "that did not say its version", environment(None)["retake"]
    return (
        f"{path} was written by retake {theirs} (schema {schema}); this is retake {ours} (schema {SCHEMA}), "
        "which would read its files wrongly: continue this run with the version that wrote it, or choose "
        "another --dir for a new one"
    )


def what_was_edited(artefact: Path, manifest: Manifest) -> str:
    """How the artefact's manifest differs from the one that was committed here; "" if it does not."""
    place = f"round-{manifest.round:03d}", manifest.stage
    if place != (artefact.parent.name, artefact.name):
        return f"is that of {manifest.stage} in round {manifest.round}"
    if manifest.fingerprint != fingerprint(manifest.stage, manifest.round, manifest.config, manifest.inputs):
        return "was edited: its fingerprint does not follow from its config and inputs"
    text = (artefact / MANIFEST).read_text(encoding="utf-8")
    if manifest.seal is not None and manifest.seal != _seal(
        text.replace(_sealed(manifest.seal), _sealed(""))
    ):
        return "was edited: its seal does not follow from the rest"
    return ""


class Store:
    """One run directory. Reading needs no lock; `lock` comes before the first write."""

    def __init__(self, root: Path, disk_usage: DiskUsage = shutil.disk_usage):
        self.root = root
        self._disk_usage = disk_usage
        self._lock = RunLock(root)
        self._hashed: set[Path] = set()

    def artefact(self, round: int, stage: str) -> Path:
        return self.root / f"round-{round:03d}" / stage

    def last_round(self) -> int:
        """The highest round with a committed artefact, 0 without any."""
        begun = [k for k, folder in round_folders(self.root) if any(folder.glob(f"[!.]*/{MANIFEST}"))]
        return max(begun, default=0)

    def lock(self) -> None:
        """Take the run for this process. Raises UserError if it is taken, or if the directory is no run."""
        if died := self._lock.acquire():
            self.event("previous_process_died", pid=died)

    def unlock(self) -> None:
        self._lock.release()

    def is_locked(self) -> bool:
        return self._lock.is_held()

    def owner(self) -> str:
        """The process that has the run, or that died having it; "" if the last one ended orderly."""
        return self._lock.owner()

    # --- artefacts

    def begin(self, round: int, stage: str, fingerprint: str) -> Path:
        """The work directory of a stage: what a killed attempt at the same work left, else empty."""
        artefact = self.artefact(round, stage)
        if artefact.exists():
            raise UserError(
                f"{artefact} has no {MANIFEST}, so it is no artefact of this run; {how_to_redo(artefact)}"
            )
        work = artefact.with_name(f".work-{stage}")
        stamp = work / SCRATCH / "fingerprint"
        if work.exists() and not (stamp.is_file() and stamp.read_text() == fingerprint):
            stamp.unlink(missing_ok=True)  # first: what a kill leaves of this work must not pass for whole
            shutil.rmtree(work)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stamp, fingerprint)
        return work

    def finish_interrupted(self, round: int, stage: str) -> None:
        """A kill between the manifest and the rename left finished work: rename it now."""
        work = self.artefact(round, stage).with_name(f".work-{stage}")
        if read_manifest(work) is not None:
            self._publish(work, self.artefact(round, stage))

    def commit(
        self,
        work: Path,
        round: int,
        stage: str,
        fingerprint: str,
        config: dict[str, Any],
        inputs: dict[str, str],
        environment: dict[str, Any],
    ) -> Path:
        """Make `work` the artefact of this stage. Killed at any point, it is either done or to be redone."""
        # names as text: Paths of a hundred thousand clips take a hundred megabytes
        folder, names = os.fspath(work), _files(work)
        _flush_all([f"{folder}/{name}" for name in names])
        files = {name: _described(f"{folder}/{name}") for name in names}
        # each one above a file, too, or a power cut could lose the way to it
        above = {Path(name) for name in {os.path.dirname(name) for name in names}}
        _flush_all(sorted(os.fspath(work / p) for p in above.union(*(p.parents for p in above))))
        manifest = Manifest(stage, round, fingerprint, config, inputs, environment, files, seal="")
        buffer = io.StringIO()
        json.dump(vars(manifest), buffer, indent=1, sort_keys=True)  # dumps() holds a text for every bracket
        text = buffer.getvalue() + "\n"
        write_atomically(work / MANIFEST, text.replace(_sealed(""), _sealed(_seal(text))))
        artefact = self.artefact(round, stage)
        self._publish(work, artefact)
        self._hashed.add(artefact)
        return artefact

    def _publish(self, work: Path, artefact: Path) -> None:
        for scratch in list(work.rglob(SCRATCH)):
            if scratch.is_dir():
                shutil.rmtree(scratch)
            else:
                scratch.unlink(missing_ok=True)
        os.replace(work, artefact)
        _flush(artefact.parent)
        _flush(self.root)

    def check_manifest(self, artefact: Path, manifest: Manifest) -> None:
        """Raises UserError if the manifest is not as it was committed."""
        if what := what_was_edited(artefact, manifest):
            raise UserError(f"{artefact / MANIFEST} {what}; {how_to_redo(artefact)}")

    def check_sizes(self, artefact: Path, manifest: Manifest) -> None:
        """Raises UserError naming the first file that is missing or of another size than when committed.

        Pruned files are not looked for.
        """
        folder = os.fspath(artefact)
        for name, known in _kept(artefact, manifest).items():
            path = f"{folder}/{name}"  # text: a hundred thousand Paths take a second to make
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            if found is None or not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is missing; {how_to_redo(artefact)}")
            if found.st_size != known["size"]:
                raise UserError(
                    f"{path} is damaged: {found.st_size} bytes, committed with {known['size']}; "
                    f"{how_to_redo(artefact)}"
                )

    def check_hashes(self, artefact: Path, may_be_pruned: bool = False) -> None:
        """The same for contents, once per process: called before a stage first reads the artefact.

        Raises UserError, too, for an artefact that was pruned, unless it may be.
        """
        if artefact in self._hashed:
            return
        manifest = read_manifest(artefact)
        assert manifest is not None, f"{artefact} is an input but not committed"
        kept = _kept(artefact, manifest)
        if len(kept) < len(manifest.files) and not may_be_pruned:
            gone = next(name for name in manifest.files if name not in kept)
            raise UserError(
                f"{artefact} is needed, but {len(manifest.files) - len(kept)} of its files were pruned, such "
                f"as {gone}; {how_to_redo(artefact)}"
            )
        self.check_sizes(artefact, manifest)
        self.check_contents(artefact, kept)
        self._hashed.add(artefact)

    def check_contents(self, artefact: Path, files: Mapping[str, dict[str, Any]]) -> None:
        """Raises UserError naming the first of these files of the manifest whose sha256 is another now."""
        for name, known in files.items():
            if _sha256(artefact / name) != known["sha256"]:
                raise UserError(
                    f"{artefact / name} is damaged: its sha256 has changed; {how_to_redo(artefact)}"
                )

    def damaged_files(self, artefact: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
        """Every file of the artefact that is not as committed, with what is wrong; all contents are read."""
        for name, known in _kept(artefact, manifest).items():
            path = artefact / name
            try:
                if not path.is_file():
                    yield path, "is missing"
                elif path.stat().st_size != known["size"]:
                    yield path, f"has {path.stat().st_size} bytes, was committed with {known['size']}"
                elif _sha256(path) != known["sha256"]:
                    yield path, "its sha256 has changed"
            except OSError as error:  # a sector that the disk cannot read any more, say
                yield path, f"cannot be read: {error.strerror}"
        for path in sorted(artefact.rglob("*")):
            name = path.relative_to(artefact).as_posix()
            if path.is_file() and name not in (MANIFEST, PRUNED) and name not in manifest.files:
                yield path, "was not committed; remove it"

    def free_bytes(self) -> int:
        return int(self._disk_usage(self.root).free)

    def require_space(self, min_free_gb: float) -> None:
        """Raises UserError when the disk has less free than a stage may need."""
        free_gb = self.free_bytes() / 1e9
        if free_gb < min_free_gb:
            raise UserError(
                f"no disk space: {self.root} has {free_gb:.2f} GB free, a stage asks for {min_free_gb:.2f}; "
                "free some and run the same command again, choose another --dir, or lower launch.min_free_gb"
            )

    def write_trouble(self) -> OSError | None:
        """Why a small file cannot be written into the run; None if it can."""
        trial = self.root / ".trial"
        try:
            trial.write_bytes(bytes(_TRIAL_BYTES))
            _flush(trial)
        except OSError as error:
            return error
        finally:
            with contextlib.suppress(OSError):
                trial.unlink()
        return None

    # --- logs and events

    def begin_attempt(self) -> Path:
        """logs/attempt-N, N one above the last."""
        logs = self.root / "logs"
        names = [path.name.removeprefix("attempt-") for path in logs.glob("attempt-*")]
        numbers = [int(name) for name in names if name.isdecimal()]
        attempt = logs / f"attempt-{max(numbers, default=0) + 1}"
        attempt.mkdir(parents=True)
        return attempt

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to events.jsonl, the only file with times (seconds since the epoch)."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        path = self.root / "events.jsonl"
        with open(path, "a+b") as log:
            torn = log.seek(0, os.SEEK_END) and os.pread(log.fileno(), 1, log.tell() - 1) != b"\n"
            # a kill in the middle of a line leaves it without its end
            log.write((b"\n" if torn else b"") + line.encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """All events; a line that a kill cut short, or that is no event, is left out."""
        path = self.root / "events.jsonl"
        events: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events


def _kept(artefact: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The manifest's files but for those that were pruned."""
    gone = read_pruned(artefact)
    return {name: known for name, known in manifest.files.items() if name not in gone}


def round_folders(root: Path) -> list[tuple[int, Path]]:
    """(round, folder) of every round that has begun. Others, such as a copy round-001.old, are left out."""
    numbers = {path: path.name.removeprefix("round-") for path in sorted(root.glob("round-*"))}
    return [(int(n), p) for p, n in numbers.items() if n.isdecimal() and p.name == f"round-{int(n):03d}"]


def _files(work: Path) -> list[str]:
    """The names below `work` of all that is to be committed, in order."""
    found = []
    for folder, folders, names in os.walk(work):
        folders[:] = [name for name in folders if name != SCRATCH]
        below = os.path.relpath(folder, work)
        for name in names:
            path, unfinished_manifest = f"{folder}/{name}", below == "." and name == f".{MANIFEST}.new"
            if name != SCRATCH and os.path.isfile(path) and not unfinished_manifest:
                assert not os.path.islink(path), f"{path} is a link; an artefact holds its own files"
                found.append(name if below == "." else f"{below}/{name}")
    return sorted(found)


def _described(path: str) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"size": os.stat(path).st_size, "sha256": _sha256(path)}


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_all(paths: Sequence[str]) -> None:
    """Each of them is on the disk afterwards. Thousands of clips are flushed a few at a time: a disk takes
    small files together several times as fast as one after the other (docs/performance.md)."""
    if len(paths) < _MANY_FILES:
        for path in paths:
            _flush(path)
        return
    with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
        for start in range(0, len(paths), _MANY_FILES):  # a pool holds what waits for it
            for _ in pool.map(_flush, paths[start : start + _MANY_FILES]):  # raises what the first one raised
                pass


def _sealed(seal: str) -> str:
    return f'"seal": "{seal}"'


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def how_to_redo(artefact: Path) -> str:
    return f"restore it, or move {artefact} away and run the same command: it is made again from its inputs"
