"""What a stage prints through libraries, and the plain progress lines."""

import io
import logging
import warnings

import pytest
from rich.console import Console

import loop.progress
from generator.models.base import load_model
from loop.config import CampaignConfig
from loop.launchers import InlineLauncher
from loop.progress import LineProgress
from loop.stages import Stage, StageContext
from tests.tiny_wan import make_tiny_wan


def test_a_stage_that_loads_and_saves_models_prints_nothing(tmp_path, capfd):
    folder = make_tiny_wan(tmp_path / "wan")
    config = CampaignConfig.model_validate(
        {"name": "quiet", "generator": {"model": folder}, "judge": {"model": "toy/toy"}}
    )

    def load_and_save(context):
        pipe = load_model(context.config.generator).pipe
        pipe.text_encoder.save_pretrained(context.out / "text_encoder")

    capfd.readouterr()
    progress = LineProgress("quiet", Console(file=io.StringIO()))
    context = StageContext(config, 0, {}, tmp_path / "out", 0, progress, logging.getLogger("retake"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InlineLauncher(config).launch(Stage(load_and_save, (), ()), context)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "out" / "text_encoder" / "model.safetensors").is_file()


@pytest.fixture
def clock(monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr(loop.progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_plain_lines_show_advance_and_time_left(clock):
    out = io.StringIO()
    progress = LineProgress("sample", Console(file=out, width=100))
    clock[0] += 3
    progress.start(40, "clips")
    for _ in range(20):
        clock[0] += 2
        progress.advance()
    progress.start(2, "questions")
    progress.advance(2)
    progress.start(3, "marks")  # follows at once, so in silence
    progress.done()
    assert out.getvalue().splitlines() == [
        "sample …",
        "sample: 0/40 clips",
        "sample: 8/40 clips, about 1 min 04 s left",
        "sample: 16/40 clips, about 48 s left",
        "sample: 0/2 questions",
        "sample: done in 43 s",
    ]
