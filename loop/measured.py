"""What evaluate measured in one round of a run, and for each take the values that a metric is the mean of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loop.curves import is_kept, read_metrics
from loop.errors import UserError
from loop.status import read_resolved
from loop.store import Manifest, Store, read_manifest
from loop.table_files import finite

BY_JUDGE = "verdicts-{}.parquet"  # of evaluate, for each metric that a judge's comparisons make
HELD_OUT = "held_out_"  # before a metric's name: the same, by the held-out judge


@dataclass(frozen=True)
class Shot:
    """One take of an evaluation: what was asked for, and the seed of its noise."""

    prompt_id: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Measured:
    """A committed evaluation. `clip`: the run's data.clip; `kept`: as in loop/curves.py."""

    run: Path
    round: int
    clip: Mapping[str, Any]
    kept: bool | None

    @classmethod
    def read(cls, run: Path, round: int) -> Measured:
        """The evaluation of a round that loop.curves.evaluated_rounds names."""
        config = read_resolved(run)
        return cls(run, round, config.get("data", {}).get("clip", {}), is_kept(run / f"round-{round:03d}"))

    @property
    def folder(self) -> Path:
        return Store(self.run).artefact(self.round, "evaluate")

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows over all categories by metric; a second judge's row of it has the judge in its name."""
        found: dict[str, dict[str, Any]] = {}
        for row in read_metrics(self.folder):
            if row["category"] == "":
                name = row["metric"]
                found[f"{name} by {row['judge']}" if name in found else name] = row
        return found

    @cached_property
    def shots(self) -> dict[str, Shot]:
        """By take_id."""
        rows = read_columns(self.folder / "takes.parquet", ("take_id", "prompt_id", "prompt", "seed"))
        return {r["take_id"]: Shot(r["prompt_id"], r["prompt"], r["seed"]) for r in rows}

    @cached_property
    def anchors(self) -> frozenset[tuple[str, str, str]] | None:
        """(id, caption, hash) of the real clips of evaluate's part; None if their table is gone."""
        path = Store(self.run).artefact(0, "prepare") / "anchors.parquet"
        if not path.is_file():
            return None
        parts = {row["part"] for row in self.rows.values()}
        rows = read_columns(path, ("anchor_id", "caption", "sha256", "part"))
        return frozenset((r["anchor_id"], r["caption"], r["sha256"]) for r in rows if r["part"] in parts)

    def values(self, metric: str) -> dict[str, float]:
        """By take_id; {} where no values of single takes are stored, or others than the metric's own.

        A take whose value could not be measured is left out.
        """
        row = self.rows[metric]
        judged = {take: score for take, (score, _) in self._judged(metric).items()}
        found, total = self._scores.get(row["metric"]) or judged, row["value"]
        if not found or total is None:
            return {}
        mean = math.fsum(found.values()) / len(found)
        return found if math.isclose(mean, total, rel_tol=1e-6, abs_tol=1e-9) else {}

    def opponents(self, metric: str) -> dict[str, str]:
        """What a judge saw each take beside: an anchor's id, or the take_id of another generator's take."""
        return {take: other.rpartition("/")[2] for take, (_, other) in self._judged(metric).items()}

    def base_generator(self) -> Any:
        """What decides how the base's takes look."""
        manifest = self._manifest(0)
        sample = manifest.config.get("sample") or {}
        return manifest.config.get("generator"), sample.get("sampling"), sample.get("first_frame")

    def previous_clips(self) -> dict[str, str]:
        """Hashes of the clips that this round was compared with as its predecessor's; {} if they are gone."""
        mark = self._manifest(self.round).inputs.get("previous")
        for number in range(self.round):
            manifest = read_manifest(Store(self.run).artefact(number, "evaluate"))
            if manifest is not None and manifest.fingerprint == mark:
                files = manifest.files.items()
                return {name: known["sha256"] for name, known in files if name.startswith("clips/")}
        return {}

    def _manifest(self, round: int) -> Manifest:
        manifest = read_manifest(Store(self.run).artefact(round, "evaluate"))
        assert manifest is not None, "only committed evaluations are measured"
        return manifest

    @cached_property
    def _scores(self) -> dict[str, dict[str, float]]:
        """Every column of scores.parquet: column → take_id → value."""
        found: dict[str, dict[str, float]] = {}
        for row in read_columns(self.folder / "scores.parquet"):
            for name, value in row.items():
                if isinstance(value, float) and finite(value) is not None:
                    found.setdefault(name, {})[row["take_id"]] = value
        return found

    def _judged(self, metric: str) -> dict[str, tuple[float, str]]:
        """How each take fared behind a metric (1 it wins, 0 it loses, ties half), and beside which clip.

        {} for a metric of pixels.
        """
        row = self.rows[metric]
        same = self.rows.get(row["metric"].removeprefix(HELD_OUT))
        path = self.folder / BY_JUDGE.format(row["metric"])
        if not path.is_file() and same is not None and same["judge"] == row["judge"]:
            path = self.folder / BY_JUDGE.format(same["metric"])  # one judge was asked once for both
        mine = f"round-{self.round}/"  # the two sides stand in a random order
        found: dict[str, tuple[float, str]] = {}
        for asked in read_columns(path, ("first_id", "second_id", "dimension", "score", "num_votes")):
            if asked["dimension"] == "overall" and finite(asked["score"]) is not None and asked["num_votes"]:
                first, second, score = asked["first_id"], asked["second_id"], asked["score"]
                if not first.startswith(mine):
                    first, second, score = second, first, 1 - score
                found[first.removeprefix(mine)] = score, second
        return found


def read_columns(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of one parquet file, [] if there is none. Raises UserError naming a file that is damaged."""
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        return []
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read(columns=None if columns is None else list(columns)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); `retake verify` names damaged files") from error
