"""What the user sees while a campaign runs: a bar with ETA for each stage, a table row after each round.

On a terminal the bars are drawn by rich; elsewhere (a log, CI) the same facts are printed as plain lines.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from loop.curves import read_metrics
from loop.decision import accepts, read_decision

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BEFORE_A_PHASE = 2.0  # phases that follow each other faster pass in silence
WIDTH_OF_THE_REST = 76  # characters beside a bar, for the longest names of stages and their phases
COLUMNS = {  # table column → metric of evaluate
    "oracle total": "oracle_total",
    "win rate vs base": "win_rate_vs_base",
    "fool rate": "fool_rate",
    "motion": "motion_magnitude",
    "judge accuracy": "judge_accuracy",
}
HEADER = ("round", *COLUMNS, "kept?")


class Progress(Protocol):
    """What a stage reports. `start` may be called again for a next phase; units are words such as "clips"."""

    def start(self, total: int, unit: str) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def done(self) -> None: ...


class CampaignColumn(ProgressColumn):
    """What the whole campaign still takes, beside the bar of the stage that runs."""

    def render(self, task: Task) -> Text:
        ends = task.fields.get("campaign_ends")
        if ends is None or task.finished:
            return Text("")
        return Text(f"all {in_words(max(ends - time.monotonic(), 0))}")


class BarProgress:
    """One stage as bars on a terminal. campaign_left: seconds, where they are known."""

    def __init__(self, label: str, bars: Bars, campaign_left: float | None = None):
        self._label = label
        self._bars = bars
        ends = None if campaign_left is None else time.monotonic() + campaign_left
        self._task = bars.add_task(label, total=None, unit="", campaign_ends=ends)

    def start(self, total: int, unit: str) -> None:
        self._bars.reset(self._task, total=total, description=f"{self._label}: {unit}")

    def advance(self, n: int = 1) -> None:
        self._bars.advance(self._task, n)

    def done(self) -> None:
        task = self._bars.tasks[self._task]
        self._bars.update(self._task, total=task.total or 1, completed=task.total or 1)
        self._bars.stop_task(self._task)


class LineProgress:
    """One stage as plain lines: at its start and end, every few seconds, and where a long phase begins.

    campaign_left: seconds that the whole campaign still takes, where they are known.
    """

    def __init__(self, label: str, console: Console, campaign_left: float | None = None):
        self._label, self._console = label, console
        self._began = self._phase_began = self._printed = time.monotonic()
        self._total = self._count = 0
        self._unit = ""
        self._campaign_left = campaign_left
        self._print(f"{label} …{self._campaign()}")

    def start(self, total: int, unit: str) -> None:
        self._total, self._count, self._unit = total, 0, unit
        self._phase_began = time.monotonic()
        if self._phase_began - self._printed >= SECONDS_BEFORE_A_PHASE:
            self._print(f"{self._label}: 0/{total} {unit}")

    def advance(self, n: int = 1) -> None:
        self._count += n
        now = time.monotonic()
        if now - self._printed < SECONDS_BETWEEN_LINES or self._count == 0:
            return
        left = (now - self._phase_began) / self._count * max(self._total - self._count, 0)
        counted = f"{self._label}: {self._count}/{self._total} {self._unit}"
        self._print(f"{counted}, about {in_words(left)} left{self._campaign()}")

    def done(self) -> None:
        self._print(f"{self._label}: done in {in_words(time.monotonic() - self._began)}")

    def _campaign(self) -> str:
        if self._campaign_left is None:
            return ""
        left = max(self._campaign_left - (time.monotonic() - self._began), 0)
        return f" (campaign: about {in_words(left)})"

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)  # to be grepped


class Display:
    """The output of one campaign, on stderr so that stdout stays free for data."""

    def __init__(self, rounds: int, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self._rounds = rounds
        self._bars: Bars | None = None
        self._header_due = True
        self._said_unknown = False
        self._warned: set[str] = set()

    def stage(self, round: int, stage: str, campaign_left: float | None = None) -> Progress:
        """Progress of the stage that starts now. campaign_left: seconds; None = not known."""
        if campaign_left is None and self._rounds > 1 and not self._said_unknown:
            self.say(f"round {round}/{self._rounds}: the campaign's time left is known after a whole round")
            self._said_unknown = True
        return self.task(f"round {round}/{self._rounds} {stage}", campaign_left)

    def task(self, label: str, campaign_left: float | None = None) -> Progress:
        """Progress of anything else."""
        if not self.console.is_terminal:
            return LineProgress(label, self.console, campaign_left)
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(min(max(self.console.width - WIDTH_OF_THE_REST, 4), 40)),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            times = (TextColumn("ETA"), TimeRemainingColumn(), CampaignColumn(Column(no_wrap=True)))
            self._bars = Bars(*columns, *times, console=self.console)
            self._bars.start()
        return BarProgress(label, self._bars, campaign_left)

    def end_round(self, round: int, evaluate: Path, gate: Path | None) -> None:
        """Print the table row of a round; its bars stay above it."""
        self.close()
        if self._header_due:
            self.say("  ".join(HEADER))
            self._header_due = False
        cells = round_row(round, evaluate, gate)
        self.say("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, HEADER, strict=True)))
        for alarm in read_decision(gate).get("alarms", []) if gate else []:
            self.say(f"       alarm {alarm['name']}: {alarm['reason']}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self.say(f"warning: {message}")

    def close(self) -> None:
        """Stop drawing; the bars remain on the terminal as they are."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def round_row(round: int, evaluate: Path, gate: Path | None) -> tuple[str, ...]:
    """The table row of one round as text; "–" where a metric was not measured."""
    values = _overall(read_metrics(evaluate))
    numbers = [f"{values[metric]:.3f}" if metric in values else "–" for metric in COLUMNS.values()]
    kept = "base" if gate is None else ("yes" if accepts(gate, "keep") else "no")
    return (str(round), *numbers, kept)


def _overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["category"] == "" and row["value"] is not None}


def in_words(seconds: float) -> str:
    """A duration for reading: "8.3 s", "48 s", "2 min 04 s", "3 h 20 min", "2 d 5 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
