"""Rows of metrics: what could not be measured is neither averaged nor breaks what reads them."""

import json
import logging
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.config import CampaignConfig
from loop.curves import read_curves
from loop.progress import round_row
from loop.report import write_report
from loop.stages import StageContext
from loop.statistics import Interval
from loop.steps.common import write_table
from loop.steps.metrics import METRICS, Rows
from loop.steps.sample import Take
from tests.fabricated_run import fabricate
from tests.test_report import Page

NAN = float("nan")


def rows() -> Rows:
    config = CampaignConfig.model_validate(
        {"name": "test", "generator": {"model": "g"}, "judge": {"model": "j"}}
    )
    return Rows(StageContext(config, 2, {}, None, 0, None, logging.getLogger("retake")))


def take(prompt: str, category: str) -> Take:
    return Take(f"{prompt}-0", "fresh", prompt, prompt, category, 0)


def test_what_is_not_measured_is_left_out_with_a_warning_and_counted(caplog):
    found = rows()
    takes = [take("a", "cats"), take("b", "cats"), take("c", "dogs"), take("d", "")]
    found.add_by_category("flicker", [0.2, NAN, math.inf, 0.4], takes)
    assert [r.getMessage() for r in caplog.records] == [
        "flicker could not be measured on 2 of 4 clips, which are left out"
    ]
    over_all, cats, dogs = found.rows
    assert (over_all["value"], over_all["num_clips"], over_all["category"]) == (pytest.approx(0.3), 2, "")
    assert (cats["value"], cats["num_clips"]) == (0.2, 1)
    assert (dogs["value"], dogs["low"], dogs["high"], dogs["num_clips"]) == (None, None, None, 0)
    found.add_interval("auc", Interval(0.7, NAN, 1.0, 9))
    assert (found.rows[-1]["value"], found.rows[-1]["low"], found.rows[-1]["num_clips"]) == (0.7, None, 9)


@pytest.mark.parametrize("hole", [None, NAN])  # NaN is what older runs may hold
def test_a_hole_in_the_metrics_breaks_nothing_that_reads_them(tmp_path, hole):
    run = fabricate(tmp_path / "run", rounds=2, num_prompts=2)
    path = run / "round-001/evaluate/metrics.parquet"
    table = pq.ParquetFile(path).read().to_pylist()
    for row in table:
        if row["metric"] in ("oracle_total", "motion_magnitude"):
            row |= {"value": hole, "low": hole, "high": hole, "num_clips": 0}
    path.unlink()  # the file may be a link
    write_table(path, table, METRICS)
    cells = round_row(1, run / "round-001/evaluate", run / "round-001/gate")
    assert cells[1] == "–" and "nan" not in cells
    shown = CliRunner().invoke(app, ["curves", str(run), "--json"])
    values = [row["value"] for row in json.loads(shown.output) if row["metric"] == "oracle_total"]
    assert values[1] is None and all(isinstance(v, float) for v in (values[0], values[2]))
    for form in ([], ["--csv"]):
        shown = CliRunner().invoke(app, ["curves", str(run), *form])
        assert shown.exit_code == 0 and "nan" not in shown.output.lower()
    words = Page(write_report(run)).text.lower().split()
    assert "nan" not in words and "motion" in words
    assert [row["value"] for row in read_curves(run) if row["metric"] == "motion_magnitude"][1] is None


def test_a_row_without_a_value_is_null_in_the_file(tmp_path):
    found = rows()
    found.add("win_rate_vs_base", [], [])
    write_table(tmp_path / "metrics.parquet", found.rows, METRICS)
    table = pq.ParquetFile(tmp_path / "metrics.parquet").read()
    assert table.schema == METRICS and table["value"] == pa.chunked_array([pa.array([None], pa.float64())])
    assert table["num_clips"].to_pylist() == [0]
