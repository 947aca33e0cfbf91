"""Trackers: programs that draw a run's numbers while it goes on. Each module here speaks to one of them.

A module has `check`, which raises UserError for what must be there before anything starts, and `start`, which
opens the run. It imports its package inside these functions: nobody pays for what the config does not name.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from loop.errors import UserError
from loop.points import Point
from loop.track_config import TrackerConfig


class Tracker(Protocol):
    """An open run. It is used from one thread; what it raises is a warning, never the campaign's end.

    where: what the user opens to look at it.
    """

    @property
    def where(self) -> str: ...

    def log(self, point: Point, number: int) -> None:
        """number: of points that this run has been given before; it goes on when the run is resumed."""
        ...

    def finish(self, done: bool) -> None:
        """Hand over what is still held and close. done: the campaign is complete."""
        ...


@dataclass(frozen=True)
class RunToTrack:
    """id: stable for the run directory, also where it is moved. config: the resolved one, as JSON data."""

    name: str
    id: str
    root: Path
    config: dict[str, Any]


def check_trackers(configured: Sequence[TrackerConfig]) -> None:
    """Raises UserError for a tracker whose package, key or permission is missing. Touches no network."""
    for number, config in enumerate(configured):
        found = importlib.util.find_spec(config.type)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise UserError(
                f"track.{number}: the package {config.type} is not installed; "
                f"pip install 'retake[trackers]' or pip install {config.type}, or remove the tracker"
            )
        module_of(config).check(config, f"track.{number}")


def start_tracker(config: TrackerConfig, run: RunToTrack) -> Tracker:
    """Raises whatever the tracker's package raises."""
    tracker: Tracker = module_of(config).start(config, run)
    return tracker


def module_of(config: TrackerConfig) -> ModuleType:
    return importlib.import_module(f"loop.trackers.{config.type}")
