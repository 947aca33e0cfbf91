"""A run for notebooks: `load_campaign` opens it, and its tables come as tidy pandas frames.

Only what is committed is read, each time anew, so that an object made while a campaign runs goes on to be
right. Nothing here imports torch, takes the run's lock or writes. docs/analysing.md has examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from loop.curves import is_kept, read_curves
from loop.decision import read_decision
from loop.device_hours import ENDS, device_hours
from loop.errors import UserError
from loop.frames import frame, read_parquet
from loop.stages import plan
from loop.status import State, find_run, read_resolved, read_status
from loop.store import MANIFEST, Store, read_manifest

_MADE_BY_ROUND = "round-"  # before a take's id in evaluate's tables


def load_campaign(run: str | Path) -> Campaign:
    """Open a run directory, or a name under runs/. Raises UserError (a ValueError) if it is none."""
    return Campaign(find_run(str(run)))


@dataclass(frozen=True)
class Campaign:
    """A run: running, finished, failed or pruned. Methods return fresh frames with the columns of the docs.

    path: the run directory. A stage that is not committed has no rows, and neither has a table that an older
    version did not write. Numbers that could not be measured are NaN.
    """

    path: Path

    def __repr__(self) -> str:
        return f"Campaign({str(self.path)!r}, {self.state}, rounds {self.rounds})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as nested dictionaries: campaign.config["update"]["beta"]."""
        return read_resolved(self.path)

    @property
    def state(self) -> State:
        """running, done, stopped, failed or interrupted, now."""
        return read_status(self.path).state

    @property
    def rounds(self) -> list[int]:
        """The rounds with something committed, ascending; 0 is the base."""
        found = self.path.glob(f"round-[0-9]*/[!.]*/{MANIFEST}")
        return sorted({int(manifest.parent.parent.name.removeprefix("round-")) for manifest in found})

    def artefact(self, round: int, stage: str) -> Path | None:
        """The folder of a committed stage, None if it is not committed."""
        folder = Store(self.path).artefact(round, stage)
        return folder if read_manifest(folder) is not None else None

    # --- measurements

    def curves(self, categories: bool = False) -> pd.DataFrame:
        """A row for each round and metric with its 95 % interval; `categories`: also for each of those."""
        return frame("curves", read_curves(self.path, None if categories else ""))

    def scores(self) -> pd.DataFrame:
        """A row for each evaluated take and round, with a column for each measure of its pixels."""
        parts = []
        for round, folder in self._artefacts("evaluate"):
            if (folder / "scores.parquet").is_file() and (folder / "takes.parquet").is_file():
                takes = read_parquet(folder / "takes.parquet")
                takes = takes[["take_id", "prompt_id", "prompt", "category", "seed"]]
                scores = takes.merge(read_parquet(folder / "scores.parquet"), on="take_id", validate="1:1")
                parts.append(scores.assign(round=round, kept=self._kept(round)))
        return frame("scores", parts)

    # --- what was filmed, said and learnt from

    def takes(self) -> pd.DataFrame:
        """A row for each take that sample or evaluate filmed. A pruned take's path leads to no file."""
        parts = []
        for stage in ("sample", "evaluate"):
            for round, folder in self._artefacts(stage):
                for part in self._tables(round, stage, "takes.parquet"):
                    paths = [str(folder / file) for file in part.pop("file")]
                    parts.append(part.assign(path=paths))
        return frame("takes", parts)

    def votes(self) -> pd.DataFrame:
        """A row for each vote of label, with a column answer_DIMENSION for each dimension asked about."""
        parts = []
        for round, _ in self._artefacts("label"):
            for part in self._tables(round, "label", "votes.parquet"):
                given = [json.loads(text) if isinstance(text, str) else {} for text in part.pop("answers")]
                answers = pd.DataFrame(given, index=part.index, dtype="string").add_prefix("answer_")
                parts.append(part.join(answers))
        return frame("votes", parts)

    def verdicts(self) -> pd.DataFrame:
        """A row for each question and dimension that a judge was asked in label, both gates and evaluate."""
        parts = []
        for stage in ("judge_gate", "label", "evaluate", "gate"):
            for round, folder in self._artefacts(stage):
                for file in sorted(folder.glob("verdicts*.parquet")):
                    metric = file.stem.removeprefix("verdicts").removeprefix("-")
                    parts += [part.assign(metric=metric) for part in self._tables(round, stage, file.name)]
        return frame("verdicts", parts)

    def pairs(self) -> pd.DataFrame:
        """A row for each preference that an update was given."""
        return frame("pairs", self._all("pair", "pairs.parquet"))

    def drops(self) -> pd.DataFrame:
        """How many verdicts or takes made no preference, by round, source and reason."""
        return frame("drops", self._all("pair", "drops.parquet"))

    # --- decisions and times

    def gates(self) -> pd.DataFrame:
        """A row for each decision: judge_gate on a round's judge, gate on its generator."""
        rows = []
        for stage, key, value, num in (
            ("judge_gate", "use", "accuracy", "num_questions"),
            ("gate", "keep", "win_rate", "num_pairs"),
        ):
            for round, folder in self._artefacts(stage):
                said = read_decision(folder)
                row = {name: said.get(name) for name in ("low", "high", "reason")}
                row |= {"round": round, "stage": stage, "accepted": bool(said[key])}
                names = [alarm["name"] for alarm in said.get("alarms", [])]
                rows.append(
                    row | {"value": said.get(value), "num": said.get(num), "alarms": ", ".join(names)}
                )
        return frame("gates", rows).sort_values(
            ["round", "stage"], ascending=[True, False], ignore_index=True
        )

    def stages(self) -> pd.DataFrame:
        """A row for each stage of the campaign, also those to come: state, wall time in seconds, devices."""
        events = Store(self.path).events()
        spent = device_hours(events)
        ended: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for event in events:
            if event["event"] in ENDS:
                ended.setdefault((event["round"], event["stage"]), []).append(event)
        rows = []
        for stage in read_status(self.path).stages:
            attempts = ended.get((stage.round, stage.stage), [])
            rows.append(
                {
                    **vars(stage),
                    "attempts": len(attempts),
                    "seconds_of_all": sum(event["seconds"] for event in attempts),
                    "device_hours": spent.get((stage.round, stage.stage)),
                    "ended": pd.to_datetime(attempts[-1]["time"], unit="s", utc=True) if attempts else pd.NaT,
                }
            )
        return frame("stages", rows)

    # --- clips

    def clip(self, clip_id: str, round: int | None = None) -> Path:
        """The file behind an id of takes, verdicts or pairs: a take, an anchor, or a clip people compared.

        round: of the row that names it; evaluate and gate film takes of the same ids every round. Raises
        UserError for an id that the run does not have, and for a file that is gone.
        """
        path = self._find(clip_id, round)
        if path is None:
            where = "" if round is None else f" in round {round}"
            hint = "; give the round of the row that names it" if round is None else ""
            raise UserError(f"{self.path} has no clip {clip_id}{where}{hint}")
        if not path.is_file():
            raise UserError(f"{path} is gone: it was pruned or deleted")
        return path

    def _find(self, clip_id: str, round: int | None) -> Path | None:
        side, _, name = clip_id.rpartition("/")
        if side.startswith(_MADE_BY_ROUND):
            round, side = int(side.removeprefix(_MADE_BY_ROUND)), ""
            return self._in_table("evaluate", round, name)
        if side in ("candidate", "parent") and round is not None:
            folder = self.artefact(round, "gate")
            return folder / side / f"{name}.mp4" if folder else None
        if side.endswith("_vs_base"):
            return self._in_table("evaluate", 0, name)
        if side.endswith("_vs_previous"):
            return self._in_table("evaluate", self._previous(round), name)
        found = self._given().get(clip_id)
        if found is None and round is not None:
            found = self._in_table("evaluate", round, clip_id)
        for number in self.rounds if round is None else [round]:
            found = found or self._in_table("sample", number, clip_id)
        return found

    def _in_table(self, stage: str, round: int | None, take_id: str) -> Path | None:
        folder = None if round is None else self.artefact(round, stage)
        return None if folder is None else _clips_in(folder / "takes.parquet", "take_id", "file").get(take_id)

    def _given(self) -> dict[str, Path]:
        """Files of anchors and of clips that people compared, by id."""
        folder = self.artefact(0, "prepare")
        if folder is None:
            return {}
        people = folder / "human_pairs.parquet"
        sides = [_clips_in(people, f"clip_{side}", f"file_{side}") for side in "AB"]
        return sides[0] | sides[1] | _clips_in(folder / "anchors.parquet", "anchor_id", "file")

    def _previous(self, round: int | None) -> int | None:
        """The round whose evaluation a round's one was compared with as its predecessor's."""
        folder = None if round is None else self.artefact(round, "evaluate")
        manifest = None if folder is None else read_manifest(folder)
        mark = None if manifest is None else manifest.inputs.get("previous")
        for number, earlier in self._artefacts("evaluate"):
            known = read_manifest(earlier)
            if mark is not None and known is not None and known.fingerprint == mark:
                return number
        return None

    # --- reading

    def _artefacts(self, stage: str) -> Iterator[tuple[int, Path]]:
        """Committed artefacts of a stage by round."""
        for round, name in plan(max(self.rounds, default=0)):
            if name == stage and (folder := self.artefact(round, stage)) is not None:
                yield round, folder

    def _all(self, stage: str, file: str) -> list[pd.DataFrame]:
        """A table of all rounds, with their number."""
        parts = [part for round, _ in self._artefacts(stage) for part in self._tables(round, stage, file)]
        return [part.drop(columns="stage") for part in parts]

    def _tables(self, round: int, stage: str, file: str) -> Iterator[pd.DataFrame]:
        """One file with its round and stage; nothing where it is not there."""
        path = Store(self.path).artefact(round, stage) / file
        if path.is_file():
            yield read_parquet(path).assign(round=round, stage=stage)

    def _kept(self, round: int) -> bool | None:
        return is_kept(self.path / f"round-{round:03d}")


def _clips_in(table: Path, id: str, file: str) -> dict[str, Path]:
    """The clips that a committed table names, by id; {} where there is no such table."""
    return _read_clips(table, id, file, table.stat().st_mtime_ns) if table.is_file() else {}


@lru_cache(maxsize=256)  # a table a stage and round: ids are looked up one by one
def _read_clips(table: Path, id: str, file: str, written: int) -> dict[str, Path]:
    rows = read_parquet(table)
    return {name: table.parent / path for name, path in zip(rows[id], rows[file], strict=True)}
