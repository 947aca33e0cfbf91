"""docs/writing-a-judge.md: its example is run as it stands there, by path and as an installed entry point."""

import json
import re
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from generator.clips import write_clip
from loop.cli import app
from tests.test_clips import moving_bar

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-judge.md"


def block(language: str) -> str:
    """The page's one code block in that language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A fresh current folder with the example's two files, a sharp clip and the same one blurred."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sharpness", raising=False)
    (tmp_path / "sharpness.py").write_text(block("python"))
    (tmp_path / "sharpness.yaml").write_text(block("yaml"))
    sharp = moving_bar(20, 64)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in sharp])
    write_clip(tmp_path / "sharp.mp4", sharp, 8)
    write_clip(tmp_path / "blurred.mp4", blurred, 8)
    return tmp_path


def verdict(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["judge", *arguments, "--prompt", "a bar moves", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_example_is_short_and_judges(here):
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 30
    found = verdict("blurred.mp4", "sharp.mp4", "--judge", "sharpness.yaml")
    assert found["dimensions"].keys() == {"visual_quality", "overall"}
    for of in found["dimensions"].values():
        assert (of["mode"], of["p_second"], of["flip_rate"]) == ("second", 1, 0)
    assert (found["num_votes"], found["num_abstentions"]) == (2, 0)
    assert "against" in found["reasoning"][0]["reasoning"]
    same = verdict("sharp.mp4", "sharp.mp4", "--judge", "sharpness.yaml")
    assert same["dimensions"]["overall"]["mode"] == "tie"


def test_the_example_as_an_entry_point(here):
    points = tomllib.loads(block("toml"))["project"]["entry-points"]
    installed = here / "sharpness-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sharpness\nVersion: 1.0\n")
    lines = [
        line
        for name, found in points.items()
        for line in (f"[{name}]", *(f"{k} = {v}" for k, v in found.items()))
    ]
    (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
    found = verdict(
        *("sharp.mp4", "blurred.mp4", "--judge", "sharpness.yaml"),
        *("--set", "judge.type=sharpness", "--set", "judge.target=null"),
    )
    assert found["dimensions"]["overall"]["mode"] == "first"
    done = CliRunner().invoke(
        app,
        [
            *("judge", "sharp.mp4", "blurred.mp4", "--prompt", "x", "--judge", "sharpness.yaml"),
            *("--set", "judge.type=sharpnes"),
        ],
    )
    assert done.exit_code == 2 and "did you mean 'sharpness'?" in done.stderr
