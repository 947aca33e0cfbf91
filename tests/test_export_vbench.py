"""`retake export-vbench`: what it writes is read by VBench's rules, restated here from its sources."""

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import UserError
from loop.export_vbench import commands, export_vbench, layout_problems
from tests.recorded_run import prompt_id, record

ODD = [
    "a cat / a dog", "x" * 300, "apollo 11-2", "take-7", "..", "-rf", 'a "quoted" *', "line\nbreak", "猫",
    "a Landscape", "A landscape", " lead", "trail ", "é" * 140, "50% $HOME `x`", "façades.",
]  # fmt: skip


def read_as_custom_input(videos: Path, prompts: Path) -> dict[Path, str]:
    """github.com/Vchitect/VBench, vbench/__init__.py, build_full_info_json, mode custom_input; evaluate.py.

    The folder's .mp4 and .gif files; the keys of the prompt file are joined to it; each must have a prompt.
    """
    given = json.loads(prompts.read_bytes().decode("ascii"))  # evaluate.py reads it in any locale's encoding
    assert type(given) is dict
    found = [videos / n for n in os.listdir(videos) if Path(n).suffix.lower() in (".mp4", ".gif")]
    by_path = {os.path.abspath(os.path.join(videos, name)): prompt for name, prompt in given.items()}
    assert len(given) >= len(found) and not {os.path.abspath(p) for p in found} - set(by_path)
    return {path: by_path[os.path.abspath(path)] for path in found}


def read_as_standard(videos: Path, prompts: list[str]) -> dict[Path, str]:
    """The same, mode vbench_standard: PROMPT-INDEX with the suffix of whatever file is listed first."""
    names = os.listdir(videos)
    suffix = Path(names[0]).suffix
    wanted = {f"{prompt}-{i}{suffix}": prompt for prompt in prompts for i in range(5)}
    return {videos / name: prompt for name, prompt in wanted.items() if name in names}


def prompt_of_name(name: str) -> str:
    """vbench/utils.py, get_prompt_from_filename."""
    return re.sub(r"-\d+$", "", Path(name).stem)


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run", rounds=1, prompts=ODD)


def test_every_clip_is_read_with_its_prompt(run, tmp_path):
    found = export_vbench(run, 1, tmp_path / "out")
    read = read_as_custom_input(tmp_path / "out" / "videos", tmp_path / "out" / "prompts.json")
    takes = {f"run {prompt_id(prompt)}-{n}": prompt for prompt in ODD for n in range(2)}
    content = {path.read_bytes().decode().rpartition(" ")[0]: prompt for path, prompt in read.items()}
    assert content == takes and len(read) == len(ODD) * 2
    assert all(path.suffix == ".mp4" and len(path.name.encode()) <= 255 for path in read)
    # names that are prompts: all but what no file system, shell or 255 bytes can take
    plain = {prompt for path, prompt in read.items() if prompt_of_name(path.name) == prompt}
    odd = ["a cat / a dog", "x" * 300, "..", "-rf", 'a "quoted" *', "line\nbreak", " lead", "é" * 140]
    assert plain == set(ODD) - set(odd)
    assert (found.num_clips, found.num_prompts, found.renamed, found.copied) == (32, 16, 16, 0)
    assert {path.stat().st_nlink for path in read} == {2}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "clips.csv").read_text(encoding="utf-8"))))
    assert {row["file"]: row["prompt"] for row in rows} == {
        path.name: prompt for path, prompt in read.items()
    }
    assert all(int(row["seed"]) > 0 and row["take_id"].startswith("prompt-") for row in rows)


def test_vbenchs_own_prompts_are_found_in_its_standard_mode(run, tmp_path):
    info = [
        {"prompt_en": "a Landscape", "dimension": ["scene", "color"]},
        {"prompt_en": "A landscape", "dimension": ["scene"]},
        {"prompt_en": "façades.", "dimension": ["scene"]},
        {"prompt_en": "never filmed", "dimension": ["color"]},
    ]
    (tmp_path / "full.json").write_text(json.dumps(info), encoding="utf-8")
    found = export_vbench(run, 0, tmp_path / "out", tmp_path / "full.json")
    assert found.standard == 3 and found.complete == ("scene",)
    read = read_as_standard(tmp_path / "out" / "videos", [entry["prompt_en"] for entry in info[:3]])
    assert sorted(read.values()) == sorted(["a Landscape", "A landscape", "façades."] * 2)
    said = "\n".join(commands(found))
    assert (
        "--mode custom_input" in said and "for dimension in scene; do" in said and "vbench_standard" in said
    )


def test_without_hard_links_clips_are_copied(run, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    found = export_vbench(run, 1, tmp_path / "out")
    assert found.copied == 32 and layout_problems(tmp_path / "out") == []
    assert {path.stat().st_nlink for path in (tmp_path / "out" / "videos").iterdir()} == {1}


def test_names_that_differ_in_case_alone_on_a_file_system_that_takes_them_for_one(run, tmp_path, monkeypatch):
    exists = os.path.lexists
    monkeypatch.setattr(
        os.path, "lexists",
        lambda path: exists(path) or path.name.lower() in {name.lower() for name in os.listdir(path.parent)},
    )  # fmt: skip
    export_vbench(run, 1, tmp_path / "out")
    read = read_as_custom_input(tmp_path / "out" / "videos", tmp_path / "out" / "prompts.json")
    assert len({path.name.lower() for path in read}) == 32 and set(read.values()) == set(ODD)


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda out: (out / "videos" / "notes.txt").write_text(""), "notes.txt is no .mp4"),
        (lambda out: (out / "videos" / "new-0.mp4").write_text(""), "new-0.mp4 has no prompt"),
        (
            lambda out: (out / "videos" / "take-7-0.mp4").unlink(),
            "take-7-0.mp4 has a prompt and is not there",
        ),
    ],
)
def test_a_layout_that_vbench_would_misread_is_found(run, tmp_path, break_it, problem):
    export_vbench(run, 1, tmp_path / "out")
    break_it(tmp_path / "out")
    assert problem in layout_problems(tmp_path / "out")


def test_what_cannot_be_exported_leaves_nothing(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    gone, other = prompt_id("take-7"), prompt_id("猫")
    clips = run / "round-001" / "evaluate" / "clips"
    (clips / f"{gone}-0.mp4").unlink()
    (run / "round-000" / "evaluate" / "clips" / f"{other}-1.mp4").write_bytes(b"other")
    (tmp_path / "list.json").write_text('{"prompt": 1}')
    for round, out, full_info, message in [
        (7, "out", None, "no evaluated clips of round 7; evaluated so far: 0, 1"),
        (1, "out", None, f"{gone}-0.mp4 is gone: it was pruned or deleted"),
        (0, "out", None, f"{other}-1.mp4 is damaged"),
    ]:
        with pytest.raises(UserError, match=message):
            export_vbench(run, round, tmp_path / out, full_info)
    good = record(tmp_path / "good", rounds=0)
    for out, full_info, message in [
        ("full", None, "exists and is not empty"),
        ("full/mine.txt", None, "exists and is not empty"),
        ("out", tmp_path / "list.json", "not VBench's list of prompts"),
        ("a$b", None, "VBench cannot take a path with"),
    ]:
        with pytest.raises(UserError, match=message):
            export_vbench(good, 0, tmp_path / out, full_info)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "good", "list.json", "run"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_the_command_names_what_to_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export-vbench", "run", "1"])
    assert done.exit_code == 0 and "32 clips of 16 prompts in run-round-1-vbench" in done.stderr
    assert f"--videos_path {tmp_path}/run-round-1-vbench/videos" in done.stdout
    assert "16 bear another name than their prompt" in done.stderr
    again = CliRunner().invoke(app, ["export-vbench", "run", "1"])
    assert again.exit_code == 2 and "not empty" in again.stderr
    assert CliRunner().invoke(app, ["export-vbench", "run", "9"]).exit_code == 2
