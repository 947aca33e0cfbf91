"""How far the running stage is, in a small file beside its log that other processes may read.

It belongs to no artefact and no fingerprint, and a run is whole without it.
"""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loop.progress import Progress

FILE = "progress.json"
SECONDS_BETWEEN_WRITES = 1.0


@dataclass(frozen=True)
class Reading:
    """What the file says.

    unit, done, total: of the stage's present phase; "" and 0 of 0 before it has counted anything.
    seconds, phase_seconds: that the stage and its present phase had taken when the file was written.
    time: when that was, in seconds since the epoch.
    """

    round: int
    stage: str
    unit: str
    done: int
    total: int
    seconds: float
    phase_seconds: float
    time: float

    def seconds_left(self, now: float) -> float | None:
        """Of the present phase, at the pace that it has had; None before anything of it is done."""
        if not 0 < self.done <= self.total:
            return None
        pace = self.phase_seconds / self.done
        return max(pace * (self.total - self.done) - self.age(now), 0.0)

    def age(self, now: float) -> float:
        """Seconds since the file was written; 0 for a clock that went backwards."""
        return max(now - self.time, 0.0)


class RecordedProgress:
    """Passes a stage's reports on and keeps the file, written at most once a second."""

    def __init__(self, shown: Progress, file: Path, round: int, stage: str, log: logging.Logger):
        self._shown, self._file, self._log = shown, file, log
        self._round, self._stage = round, stage
        self._began = self._phase_began = time.monotonic()
        self._unit, self._done, self._total = "", 0, 0
        self._failed = False
        self._write()

    def start(self, total: int, unit: str) -> None:
        self._unit, self._done, self._total = unit, 0, total
        self._phase_began = time.monotonic()
        self._write()
        self._shown.start(total, unit)

    def advance(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()
        self._shown.advance(n)

    def done(self) -> None:
        self._shown.done()

    def _write(self) -> None:
        now = self._written = time.monotonic()
        reading = Reading(
            self._round, self._stage, self._unit, self._done, self._total,
            round(now - self._began, 3), round(now - self._phase_began, 3), round(time.time(), 3),
        )  # fmt: skip
        beside = self._file.with_name(f".{FILE}.new")
        try:
            beside.write_text(json.dumps(asdict(reading)), encoding="utf-8")
            os.replace(beside, self._file)  # not flushed: after a power cut nobody asks how far it was
        except OSError as error:
            if not self._failed:
                self._log.warning("%s cannot be written, so retake status is behind: %s", self._file, error)
            self._failed = True


def read_progress(file: Path) -> Reading | None:
    """None where there is no such file, or none that this version can read."""
    try:
        return Reading(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
