"""The disk: what a round is said to take, and that a campaign stops before it, not in it."""

import functools
import json
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import loop.store
from loop.cli import app
from loop.config_file import load_config
from loop.errors import Stopped
from loop.forecast import forecast
from loop.progress import Display
from loop.sizes import in_words
from loop.stages import EVERY_ROUND, STAGES, Stage, StageContext
from loop.status import read_status
from loop.store import Store, read_manifest
from tests.toy_campaign import CONFIG, TOY_STAGES, run_toy_campaign, toy_stage, tree

Usage = namedtuple("Usage", "total used free")
CLIP = 100_000  # bytes
# 2 prompts x 3 takes, 2 of the one guided anchor, 1 gate prompt x 2 seeds x 2 generators
FILMED = 2 * 3 + 2 + 1 * 2 * 2
JUDGED = 4  # clips of evaluate
SETTINGS = """\
sample: {fresh: {num_prompts: 9, takes_per_prompt: 3}, guided: {num_anchors: 1}}
gate: {num_seeds: 2}
"""


def filming_stage(name: str, context: StageContext) -> None:
    """A toy stage that leaves what a forecast reads: tables of prepare, clips of evaluate and sample."""
    toy_stage(name, context)
    if name == "prepare":
        parts = ("train", "train", "gate", "report")
        prompts = [{"part": part, "text": f"prompt {n}"} for n, part in enumerate(parts)]
        pq.write_table(pa.Table.from_pylist(prompts), context.out / "prompts.parquet")
        anchors = [{"part": part, "caption": f"prompt {n}"} for n, part in enumerate(parts)]
        pq.write_table(pa.Table.from_pylist(anchors), context.out / "anchors.parquet")
    for number in range({"evaluate": JUDGED, "sample": FILMED}.get(name, 0)):
        (context.out / f"{number}.mp4").write_bytes(bytes(CLIP))


STAGES_WITH_CLIPS = {
    name: Stage(functools.partial(filming_stage, name), stage.inputs, stage.config)
    for name, stage in STAGES.items()
}


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "toy.yaml").write_text(CONFIG + SETTINGS)
    return tmp_path / "toy.yaml"


def run(config: Path, free: float, *overrides: str, name: str = "run") -> list[str]:
    """What the campaign says on a disk with so many bytes free."""
    console = Console(record=True, quiet=True, width=400)
    console.quiet = False
    store = Store(config.parent / name, disk_usage=lambda path: Usage(0, 0, free))
    with open(config.parent / "said", "w") as console.file:
        loaded = load_config(config, overrides)
        display = Display(loaded.config.rounds, console)
        run_toy_campaign(loaded, store, stages=STAGES_WITH_CLIPS, display=display)
    return (config.parent / "said").read_text().splitlines()


def test_the_first_round_is_forecast_from_the_base_and_later_ones_from_the_round_before(config):
    said = run(config, 1e9)
    assert [line for line in said if line.startswith("disk:")] == [
        "disk: a round takes about 1.6 MB (clips 1.6 MB, weights 0 B); the 2 rounds to come take 3.2 MB, "
        "1.00 GB are free; not counted: toy/toy, not on this machine"
    ]
    assert not any("warning" in line for line in said)
    store, settings = Store(config.parent / "run"), load_config(config).config
    first = forecast(store, settings, 1)
    assert (first.clips, first.weights, first.measured) == ((JUDGED + FILMED) * CLIP, 0, None)
    files = [read_manifest(store.artefact(1, stage)).files for stage in EVERY_ROUND]
    there = sum(file["size"] for of in files for file in of.values())
    assert forecast(store, settings, 2).kept == there > first.kept


def test_a_round_that_will_not_fit_is_not_begun_and_the_same_command_resumes(config):
    with pytest.raises(Stopped, match=r"round 1 takes about 1\.6 MB, but .* has 1\.5 MB free"):
        run(config, 1.5e6)
    root = config.parent / "run"
    assert not (root / "round-001").exists()
    state = read_status(root)
    assert state.state == "stopped" and "lack of disk space" in state.reason
    # free beside what every stage asks for
    with pytest.raises(Stopped, match=r"launch\.min_free_gb keeps 0\.001 GB"):
        run(config, 2.5e6, "launch.min_free_gb=0.001")
    run(config, 1e9)
    run(config, 1e9, name="whole")
    assert tree(root) == tree(config.parent / "whole")


def test_a_campaign_that_will_not_fit_is_warned_of_and_stops_between_rounds(config):
    """Three rounds of 1.6 MB on a disk of 2 MB, which stays as it is: one more than fits is none too many."""
    said = run(config, 2e6, "rounds=3")
    warning = "warning: the disk will not hold the campaign: it will stop before round 2; `retake prune"
    assert sum(line.startswith(warning) for line in said) == 1


def test_a_round_under_way_asks_only_for_the_rest(config, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "1-pair")
    with pytest.raises(loop.errors.StageFailed):
        run(config, 1e9, "rounds=1")
    monkeypatch.delenv("TOY_FAIL")
    with pytest.raises(Stopped, match=r"round 1 takes about 0\.4 MB"):  # 1.6 less sample's 1.2
        run(config, 0.3e6, "rounds=1")
    run(config, 0.45e6, "rounds=1")


def test_a_full_disk_ends_the_command_with_75(config, monkeypatch):
    monkeypatch.setattr(
        loop.campaign, "run_campaign", functools.partial(run_toy_campaign, stages=STAGES_WITH_CLIPS)
    )
    monkeypatch.setattr(Store, "free_bytes", lambda self: 10**6)
    done = CliRunner().invoke(app, ["run", str(config), "--dir", str(config.parent / "run")])
    assert done.exit_code == 75
    assert "stopped by lack of disk space: round 1 takes about 1.6 MB" in done.stderr
    assert "the same command resumes" in done.stderr
    told = CliRunner().invoke(app, ["status", str(config.parent / "run")])
    assert "\nstopped by lack of disk space: round 1 takes about 1.6 MB" in told.stdout


def test_a_dry_run_forecasts_what_is_known(config, monkeypatch):
    """Nothing of toy models and no round; then the weights; then, beside a run that has begun, its clips."""
    monkeypatch.setattr("loop.models.check_models", lambda config: None)

    def said(*more: str) -> list[str]:
        arguments = ["run", str(config), "--dir", str(config.parent / "run"), "--dry-run", *more]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception
        return [line for line in done.stderr.splitlines() if line.startswith("disk:")]

    assert said() == []
    write_weights(config.parent / "judge" / "model.safetensors", **{"q_proj.weight": [500, 600]})
    judge = ("--set", f"judge.model={config.parent / 'judge'}")
    assert said("--rounds", "0", *judge) == []
    [line] = said(*judge)
    assert "takes about 1.2 MB (clips not known before round 0, weights 1.2 MB); the 2 rounds to" in line
    assert not (config.parent / "run").exists()
    run(config, 1e9, "rounds=1")
    [line] = said("--rounds", "3")
    assert "; the 2 rounds to come take 3.2 MB" in line
    assert said("--rounds", "1") == []


def write_weights(file: Path, **shapes: list[int]) -> None:
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())


def test_weights_are_as_large_as_the_models_say(config, tmp_path):
    """Counted by hand: a LoRA of rank 2 on one 8 x 4 matrix has 2 * (8 + 4) weights, whole models all."""
    generator, judge = tmp_path / "generator", tmp_path / "judge"
    write_weights(
        generator / "transformer" / "a.safetensors",
        **{"blocks.0.to_q.weight": [8, 4], "blocks.0.to_q.bias": [8], "blocks.0.ff.weight": [10, 10]},
    )
    write_weights(generator / "vae" / "a.safetensors", **{"to_q.weight": [99, 99]})
    write_weights(judge / "model.safetensors", **{"q_proj.weight": [5, 6], "norm": [7]})
    overrides = [f"generator.model={generator}", f"judge.model={judge}"]
    store = Store(tmp_path / "none")

    def of(*more: str) -> tuple[int, int]:
        found = forecast(store, load_config(config, [*overrides, *more]).config, 1)
        assert found.clips == 0 and found.unknown == ()
        return found.weights, found.checkpoints

    everything, whole_judge = 8 * 4 + 8 + 100, 5 * 6 + 7
    # two step checkpoints of weights and two moments, and the best weights so far
    assert of() == (4 * everything + 4 * whole_judge, 4 * everything * 7)
    assert of("update.held_out_share=0", "update.average=0.9") == (
        4 * everything + 4 * whole_judge, 4 * everything * 8,
    )  # fmt: skip
    lora = 2 * (8 + 4)
    assert of("update.lora.rank=2", "generator.dtype=bfloat16", "train_judge.dtype=bfloat16") == (
        4 * lora + 2 * whole_judge, 4 * lora * 7,
    )  # fmt: skip
    assert of("train_judge.num_steps=0") == (4 * everything, 4 * everything * 7)
    for torn in (b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"):
        (judge / "torn.safetensors").write_bytes(torn)
        assert of("update.lora.rank=2")[0] == 4 * lora + 4 * whole_judge
    kept = of("update.lora.rank=2", "train_judge.checkpoint_every=10")
    assert kept == (4 * lora + 4 * whole_judge, 4 * whole_judge * 6)


def test_latents_of_what_is_trained_on_are_counted_while_it_trains(config, tmp_path):
    """By hand: a quarter byte a pixel for 8 takes of sample and 2 train anchors, none for the gate's."""
    run(config, 1e9, "rounds=0")
    generator = tmp_path / "generator"
    write_weights(generator / "transformer" / "a.safetensors", **{"blocks.0.to_q.weight": [8, 4]})
    clip = "data.clip={num_frames: 9, height: 64, width: 32, fps: 8}"
    settings = load_config(config, [f"generator.model={generator}", clip]).config
    found = forecast(Store(config.parent / "run"), settings, 1)
    assert found.checkpoints == 4 * (8 * 4) * 7 + 0.25 * 9 * 64 * 32 * (2 * 3 + 2 + 2)


def test_bytes_in_words():
    told = [in_words(n) for n in (0, 999, 3_400, 56_700_000, 1_234_000_000, 5e12)]
    assert told == ["0 B", "999 B", "3.4 kB", "56.7 MB", "1.23 GB", "5,000.00 GB"]


def test_where_nothing_is_known_nothing_is_said(config):
    assert forecast(Store(config.parent / "none"), load_config(config).config, 1) is None
    assert set(TOY_STAGES) == set(STAGES_WITH_CLIPS)
