"""The run directory: artefacts and their manifests, the commit, the event log.

An artefact is a directory round-NNN/STAGE with a manifest.json. Work goes on in round-NNN/.work-STAGE, which
survives a crash; `commit` hashes the files, writes the manifest last and renames. The manifest is the commit.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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

DiskUsage = Callable[[Path], Any]  # as shutil.disk_usage: an object with `.free` in bytes


@dataclass(frozen=True)
class Manifest:
    """What made an artefact, and what is in it. Holds no times: the same work gives the same bytes.

    `config` is the slice of the configuration that the fingerprint covers, `inputs` maps each input's name to
    its fingerprint, `files` maps each relative path to {"size": bytes, "sha256": hex}.
    """

    stage: str
    round: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    environment: dict[str, Any]
    files: dict[str, dict[str, Any]]
    schema: int = SCHEMA


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
    """None where nothing is committed. Raises UserError for a damaged manifest or one of another schema."""
    path = artefact / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise UserError(
                f"{path} has schema {data['schema']}, this version of retake writes {SCHEMA}; "
                "continue with the version that began the run, or choose another --dir"
            )
        return Manifest(**data)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; {_redo(artefact)}") from None


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
        numbers = [int(p.parent.parent.name[6:]) for p in self.root.glob(f"round-[0-9]*/[!.]*/{MANIFEST}")]
        return max(numbers, default=0)

    def lock(self) -> None:
        """Take the run for this process. Raises UserError if it is taken, or if the directory is no run."""
        if died := self._lock.acquire():
            self.event("previous_process_died", pid=died)

    def unlock(self) -> None:
        self._lock.release()

    def is_locked(self) -> bool:
        return self._lock.is_held()

    # --- artefacts

    def begin(self, round: int, stage: str, fingerprint: str) -> Path:
        """The work directory of a stage: what a killed attempt at the same work left, else empty."""
        artefact = self.artefact(round, stage)
        if artefact.exists():
            raise UserError(
                f"{artefact} has no {MANIFEST}, so it is no artefact of this run; {_redo(artefact)}"
            )
        work = artefact.with_name(f".work-{stage}")
        stamp = work / SCRATCH / "fingerprint"
        if work.exists() and not (stamp.is_file() and stamp.read_text() == fingerprint):
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
        paths = list(_files(work))
        _flush_all(paths)
        files = {
            path.relative_to(work).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in paths
        }
        _flush_all(list({path.parent for path in paths}))
        manifest = Manifest(stage, round, fingerprint, config, inputs, environment, files)
        text = json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n"
        write_atomically(work / MANIFEST, text)
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
                raise UserError(f"{path} is missing; {_redo(artefact)}")
            if found.st_size != known["size"]:
                raise UserError(
                    f"{path} is damaged: {found.st_size} bytes, committed with {known['size']}; "
                    f"{_redo(artefact)}"
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
                f"as {gone}; {_redo(artefact)}"
            )
        self.check_sizes(artefact, manifest)
        for name, known in kept.items():
            if _sha256(artefact / name) != known["sha256"]:
                raise UserError(f"{artefact / name} is damaged: its sha256 has changed; {_redo(artefact)}")
        self._hashed.add(artefact)

    def damaged_files(self, artefact: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
        """Every file of the artefact that is not as committed, with what is wrong; all contents are read."""
        for name, known in _kept(artefact, manifest).items():
            path = artefact / name
            if not path.is_file():
                yield path, "is missing"
            elif path.stat().st_size != known["size"]:
                yield path, f"has {path.stat().st_size} bytes, was committed with {known['size']}"
            elif _sha256(path) != known["sha256"]:
                yield path, "its sha256 has changed"
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

    # --- logs and events

    def begin_attempt(self) -> Path:
        """logs/attempt-N, N one above the last."""
        logs = self.root / "logs"
        numbers = [int(path.name.removeprefix("attempt-")) for path in logs.glob("attempt-*")]
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
        """All events; a line that a kill cut short is left out."""
        path = self.root / "events.jsonl"
        events: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return events


def _kept(artefact: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The manifest's files but for those that were pruned."""
    gone = read_pruned(artefact)
    return {name: known for name, known in manifest.files.items() if name not in gone}


def _files(work: Path) -> Iterator[Path]:
    for path in sorted(work.rglob("*")):
        unfinished_manifest = path == work / f".{MANIFEST}.new"
        if SCRATCH not in path.relative_to(work).parts and path.is_file() and not unfinished_manifest:
            assert not path.is_symlink(), f"{path} is a link; an artefact holds its own files"
            yield path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_all(paths: Sequence[Path]) -> None:
    """Each of them is on the disk afterwards. Thousands of clips are flushed a few at a time: a disk takes
    small files together several times as fast as one after the other (docs/performance.md)."""
    if len(paths) < _MANY_FILES:
        for path in paths:
            _flush(path)
        return
    with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
        for _ in pool.map(_flush, paths):  # raises what the first of them raised
            pass


def _redo(artefact: Path) -> str:
    return f"restore it, or move {artefact} away and run the same command: it is made again from its inputs"
