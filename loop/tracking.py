"""Feeds trackers from the run directory while a campaign goes on: strict at its start, never fatal later.

Each tracker has a thread of its own, so one that hangs or fails costs the campaign nothing. What it has taken
is counted in logs/trackers; a tracker that failed, or a campaign that was resumed, goes on from there.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loop.config import CampaignConfig
from loop.errors import UserError
from loop.points import Feed
from loop.progress import Display
from loop.store import write_atomically
from loop.track_config import TrackerConfig
from loop.trackers import RunToTrack, Tracker, check_trackers, start_tracker

SECONDS_TO_START = 120.0
SECONDS_TO_END = 15.0  # for all trackers together
SECONDS_BETWEEN_LOOKS = 2.0
LONGEST_PAUSE = 60.0  # between two tries of a tracker that fails


@contextlib.contextmanager
def tracked(config: CampaignConfig, root: Path, display: Display) -> Iterator[None]:
    """While it lasts, the trackers of the config follow the run in `root`.

    Raises UserError where one cannot be started, before the body runs. Later trouble is one warning each.
    """
    check_trackers(config.track)
    followers: list[_Follower] = []
    done = False
    try:
        if config.track:
            run = RunToTrack(config.name, run_id(root, config.name), root, config.model_dump(mode="json"))
            for each in config.track:
                followers.append(_Follower(each, run, config.rounds, display.warn_once))
            _wait_for_start(followers)
            for follower in followers:
                display.say(f"tracked by {follower.destination}: {follower.where}")
        yield
        done = True
    finally:
        _end(followers, done, display)


def run_id(root: Path, name: str) -> str:
    """NAME-XXXXXXXX from the directory's path, written down at its first use so that the run may be moved."""
    file = root / "logs" / "trackers" / "run_id"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}\n")
    return file.read_text(encoding="utf-8").strip()


class Ledger:
    """How many points of each source a tracker has taken."""

    def __init__(self, root: Path, destination: str):
        digest = hashlib.sha256(destination.encode()).hexdigest()[:8]
        self._file = root / "logs" / "trackers" / f"{destination.split()[0]}-{digest}.json"
        self._destination = destination
        try:
            self.sent: dict[str, int] = json.loads(self._file.read_text(encoding="utf-8"))["sent"]
        except FileNotFoundError:
            self.sent = {}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self._file} is damaged; delete it, and {destination} gets all points of the run again"
            ) from None

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def count(self, source: str) -> None:
        self.sent[source] = self.sent.get(source, 0) + 1
        text = json.dumps({"destination": self._destination, "sent": self.sent}, indent=1)
        beside = self._file.with_name(f".{self._file.name}.new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._file)  # not flushed: after a power cut a few points may come twice


class _Follower:
    """One tracker and the thread that alone speaks with it."""

    def __init__(self, config: TrackerConfig, run: RunToTrack, rounds: int, warn: Callable[[str], None]):
        self.destination = config.destination
        self.error: Exception | None = None
        self.started, self.ending = threading.Event(), threading.Event()
        self.done = False
        self.where = ""
        self._config, self._run, self._warn = config, run, warn
        self._feed, self._ledger = Feed(run.root, rounds), Ledger(run.root, config.destination)
        self.thread = threading.Thread(target=self._follow, name=self.destination, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        try:
            tracker = start_tracker(self._config, self._run)
            self.where = tracker.where
        except Exception as error:
            self.error = error
            return
        finally:
            self.started.set()
        pause = SECONDS_BETWEEN_LOOKS
        while not self.ending.wait(pause):
            pause = SECONDS_BETWEEN_LOOKS if self._pass_on(tracker) else min(2 * pause, LONGEST_PAUSE)
        self._pass_on(tracker)
        try:
            tracker.finish(self.done)
        except Exception as error:
            self._complain(error)

    def _pass_on(self, tracker: Tracker) -> bool:
        """Whether the tracker has taken all that there is."""
        try:
            for source, point in self._feed.new(dict(self._ledger.sent)):
                if point is not None:
                    tracker.log(point, self._ledger.total)
                self._ledger.count(source)
        except Exception as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        if self.error is None:
            self._warn(
                f"{self.destination} does not take the campaign's numbers ({type(error).__name__}: {error}); "
                "the campaign goes on, and what is missing is sent later, or when the same command runs again"
            )
        self.error = error


def _wait_for_start(followers: list[_Follower]) -> None:
    until = time.monotonic() + SECONDS_TO_START
    for follower in followers:
        if not follower.started.wait(max(until - time.monotonic(), 0)):
            raise UserError(
                f"track: {follower.destination} did not start within {SECONDS_TO_START:.0f} s; is there a "
                "network? Work offline, or remove the tracker"
            )
        if follower.error is not None:
            raise UserError(
                f"track: {follower.destination} cannot be started: {follower.error}; put it right, or remove "
                "the tracker"
            ) from follower.error


def _end(followers: list[_Follower], done: bool, display: Display) -> None:
    for follower in followers:
        follower.done = done
        follower.ending.set()
    until = time.monotonic() + SECONDS_TO_END
    for follower in followers:
        if not follower.started.is_set():
            continue  # that it hangs at its start has been said
        follower.thread.join(max(until - time.monotonic(), 0))
        if follower.thread.is_alive():
            display.warn_once(
                f"{follower.destination} hangs and was left behind after {SECONDS_TO_END:.0f} s; what it has "
                "not taken is sent when the same command runs again"
            )
