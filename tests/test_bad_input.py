"""What users get wrong, through the real command and the real stages: the message, exit code 2, no damage.

Messages of the YAML reader, of metadata.csv and of splits are tested in detail in test_config.py and
test_data.py; a second launch and a changed config in test_campaign.py and test_cli.py.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import loop.embedded
import loop.store
from generator.clips import write_clip
from loop.cli import app
from tests.test_clips import ramp
from tests.toy_campaign import tree

HEADER = "file_name,caption\n"
ROWS = "".join(f"{name}.mp4,clip {name}\n" for name in "abcd")
TINY_WAN = Path(loop.embedded.__file__).parent / "tiny-wan"
CONFIG = """\
name: bad
rounds: 0
data:
  anchors: clips
  split: {train: 1, calibrate: 1, gate: 1, report: 1}
generator: {model: "embedded:tiny-wan", max_text_tokens: 8}
judge:
  model: embedded:tiny-judge
  instructions: compare
  frame_size: 32
  time_stamps: false
  max_new_tokens: 48
known_answers: {num_report: 4}
sample: {sampling: {num_steps: 2}}
evaluate: {num_seeds: 1, num_ballots: 1}
launch: {min_free_gb: 0}
"""


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """Four good clips in a fresh current folder, beside bad.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bad.yaml").write_text(CONFIG)
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in "abcd":
        write_clip(folder / f"{name}.mp4", ramp(20, 32, 32), 8)
    (folder / "metadata.csv").write_text(HEADER + ROWS)
    return folder


def run(*overrides: str) -> Result:
    arguments = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["run", "bad.yaml", "--dir", "run", *arguments])


def no_folder(clips: Path) -> None:
    shutil.rmtree(clips)


def no_table(clips: Path) -> None:
    (clips / "metadata.csv").unlink()


def no_caption(clips: Path) -> None:
    (clips / "metadata.csv").write_text(HEADER + ROWS.replace("clip b", ""))


def no_file_name(clips: Path) -> None:
    (clips / "metadata.csv").write_text(HEADER + ROWS.replace("c.mp4", ""))


def too_few(clips: Path) -> None:
    (clips / "metadata.csv").write_text(HEADER + "a.mp4,clip a\nb.mp4,clip b\nc.mp4,clip c\n")


def unreadable(clips: Path) -> None:
    (clips / "b.mp4").write_text("no video")


def zero_length(clips: Path) -> None:
    (clips / "c.mp4").write_bytes(b"")


def gone(clips: Path) -> None:
    (clips / "d.mp4").unlink()


def too_short(clips: Path) -> None:
    write_clip(clips / "a.mp4", ramp(9, 32, 32), 8)


BAD_CLIPS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no_folder": (no_folder, ["clips: no such folder", "set data.anchors to a folder"]),
    "no_table": (no_table, ["clips/metadata.csv: no such file", "file_name,caption"]),
    "no_caption": (no_caption, ["clips/metadata.csv, line 3: no caption", "fill in column 'caption'"]),
    "no_file_name": (no_file_name, ["clips/metadata.csv, line 4: no file name", "or remove the line"]),
    "too_few": (too_few, ["part report needs 1 groups of clips, 0 left", "add at least 1 more clips"]),
    "unreadable": (unreadable, ["part report needs 1", "b.mp4, line 3: not a readable video", "re-encode"]),
    "zero_length": (zero_length, ["part report needs 1", "c.mp4, line 4: not a readable video"]),
    "gone": (gone, ["part report needs 1", "d.mp4, line 5: no such video file"]),
    "too_short": (too_short, ["a.mp4, line 2: clip of 1.12 s is shorter than the 2.12 s", "num_frames"]),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_clips_are_named_with_the_remedy(clips, case):
    spoil, parts = BAD_CLIPS[case]
    spoil(clips)
    done = run()
    assert done.exit_code == 2, done.output
    assert all(part in done.stderr for part in parts), done.stderr
    assert "Traceback" not in done.output and not list(Path("run").glob("round-*/*/manifest.json"))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.clip.num_frames=16"], ["data.clip.num_frames 16", "4k+1 frames, such as 13 or 17"]),
        (["data.clip.height=40"], ["data.clip: height 40 and width 32 must be multiples of 16"]),
        (["data.clip.num_frames=57"], ["shorter than the 7.12 s that 57 frames at 8 fps take"]),
        (
            ["data.split={train: [a.mp4], calibrate: [b.mp4], gate: [c.mp4], report: [e.mp4]}"],
            ["data.split.report: 'e.mp4' is not in metadata.csv", "did you mean"],
        ),
        (
            ["rounds=1", "update.lora={rank: 2, target_modules: [to_q, to_x]}"],
            ["update.lora.target_modules: to_x not found in WanTransformer3DModel", "such as to_q"],
        ),
        (["judge.model=nobody/nothing"], ["judge.model: cannot load 'nobody/nothing'"]),
        (["judge.dimensions=[motion]"], ["judge.dimensions lacks overall", "add it"]),
        (["launch.min_free_gb=1e9"], ["no disk space: run has", "lower launch.min_free_gb"]),
    ],
)
def test_settings_that_do_not_fit_the_clips_or_the_machine(clips, overrides, parts):
    done = run(*overrides)
    assert done.exit_code == 2, done.output
    assert all(part in done.stderr for part in parts), done.stderr
    assert "Traceback" not in done.output and not list(Path("run").glob("round-*/*/manifest.json"))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("evaluat: {num_seeds: 1}\n", ["bad.yaml, line 17: evaluat: unknown key", "did you mean evaluate?"]),
        ("seed: soon\n", ["bad.yaml, line 17: seed: should be a valid integer", "'soon'"]),
    ],
)
def test_a_wrong_line_of_the_config_makes_no_run_directory(clips, line, parts):
    Path("bad.yaml").write_text(CONFIG + line)
    done = run()
    assert done.exit_code == 2 and all(part in done.stderr for part in parts), done.stderr
    assert not Path("run").exists()


def test_damaged_weights_are_a_user_error(clips, tmp_path):
    shutil.copytree(TINY_WAN, tmp_path / "wan")
    weights = tmp_path / "wan" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    done = run(f"generator.model={tmp_path / 'wan'}")
    assert done.exit_code == 2 and "generator.model: cannot load" in done.stderr, done.output


def test_a_judge_without_vision_is_refused_before_anything_is_filmed(clips, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(tiny).save_pretrained(tmp_path / "text")
    AutoTokenizer.from_pretrained(TINY_WAN.with_name("tiny-judge")).save_pretrained(tmp_path / "text")
    done = run(f"judge.model={tmp_path / 'text'}")
    assert done.exit_code == 2 and "has no vision" in done.stderr, done.output
    assert not list(Path("run").glob("round-*/*/manifest.json"))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.anchors=nowhere", "data.anchors: nowhere: no such folder"),
        ("data.human_pairs=pairs.csv", "data.human_pairs: pairs.csv: no such file"),
        ("data.prompts=prompts.txt", "data.prompts: prompts.txt: no such file"),
    ],
)
def test_a_dry_run_says_what_is_not_there(clips, override, part):
    done = CliRunner().invoke(app, ["run", "bad.yaml", "--dry-run", "--set", override])
    assert done.exit_code == 2 and part in done.stderr, done.output
    done = CliRunner().invoke(app, ["run", "bad.yaml", "--dry-run"])
    assert done.exit_code == 0 and "no clip and no weights were read" in done.stderr


def test_a_run_directory_that_cannot_be_made(clips):
    done = CliRunner().invoke(app, ["run", "bad.yaml", "--dir", "clips/a.mp4/run"])
    assert done.exit_code == 2 and "clips/a.mp4/run" in done.stderr and "choose a --dir" in done.stderr


@pytest.mark.timeout(180)
def test_no_bad_input_damages_a_run(clips, monkeypatch):
    """One run meets all of it, and a disk that is full now and again; in the end it is as a clean one."""
    good = Path("good")
    clips.rename(good)
    for spoil, _ in BAD_CLIPS.values():
        shutil.copytree(good, clips)
        spoil(clips)
        assert run().exit_code == 2
        shutil.rmtree(clips, ignore_errors=True)
    good.rename(clips)
    assert run("data.clip.num_frames=16").exit_code == 2

    flush, room = loop.store._flush, 0

    def full(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        flush(path)

    monkeypatch.setattr(loop.store, "_flush", full)
    codes = []
    while not codes or codes[-1] != 0:
        left = room = room + 4
        done = run()
        codes.append(done.exit_code)
        assert done.exit_code in (0, 2), done.output
        assert done.exit_code == 0 or "No space left" in done.stderr
    assert len(codes) > 4
    monkeypatch.undo()

    monkeypatch.chdir(clips.parent)
    clean = CliRunner().invoke(app, ["run", "bad.yaml", "--dir", "clean"])
    assert clean.exit_code == 0, clean.output
    before, after = tree(Path("clean")), tree(Path("run"))
    del before["report.html"], after["report.html"]
    assert before == after
