"""One round of configs/real-clips.yaml on videos of mixed codecs, sizes, rates and containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch

from generator.clips import read_clip
from generator.config import SamplingConfig
from generator.models.base import load_model
from generator.sampling import noise_for, sample
from loop.config_file import load_config
from loop.models import resolve_model
from loop.stages import plan
from loop.store import MANIFEST, Store, read_manifest
from reward.encoding import Encoder
from reward.judge import load_judge
from reward.question import Ask, Frames, Question
from tests.test_clips import encode

ROOT = Path(__file__).parent.parent
CLIPS = [  # file name, codec, pixel format, frames a second, height, width, part
    ("street.mp4", "libx264", "yuv420p", Fraction(30000, 1001), 90, 160, "train"),
    ("river.avi", "mpeg4", "yuv420p", Fraction(25), 72, 96, "train"),
    ("kitchen.webm", "libvpx-vp9", "yuv420p", Fraction(24), 120, 68, "train"),
    ("harbour.mkv", "ffv1", "yuv444p", Fraction(15), 51, 35, "calibrate"),
    ("market.mov", "mjpeg", "yuvj420p", Fraction(10), 64, 64, "gate"),
    ("forest.mp4", "mpeg4", "yuv420p", Fraction(16), 48, 84, "report"),
]
SMALLER = [
    "known_answers={num_train: 8, num_calibrate: 8, num_gate: 8, num_report: 8, segments: 4}",
    "train_judge={num_steps: 2, batch_size: 4}",
    "judge_gate.num_questions=8",
    "judge.max_new_tokens=64",
    "sample.sampling.num_steps=4",
    "update.num_steps=4",
    "evaluate.num_seeds=2",
    "gate.num_seeds=2",
    "alarms.num_probes=1",
    "threads=1",
    "launch.min_free_gb=0",
]


def drifting_texture(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Soft coloured blocks that drift over the picture: no shape of the embedded world, but it moves."""
    blocks = np.random.default_rng(seed).integers(30, 226, (6, 6, 3), dtype=np.uint8)
    wall = np.kron(blocks, np.ones((height // 3 + 1, width // 3 + 1, 1), np.uint8))
    return np.stack([np.roll(wall, (t // 2, t), axis=(0, 1))[:height, :width] for t in range(num_frames)])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    lines = ["file_name,caption"]
    for seed, (name, codec, pixel_format, rate, height, width, _) in enumerate(CLIPS):
        frames = drifting_texture(int(3 * rate), height, width, seed)
        encode(folder / name, frames, codec, pixel_format, rate)
        what = name.split(".")[0]
        lines.append(f'{name},"The {what} on a rainy morning, seen from a slowly moving camera."')
    (folder / "broken.mp4").write_bytes(b"\0" * 500)
    encode(folder / "short.mkv", drifting_texture(8, 48, 48, 9), "ffv1", "yuv444p", Fraction(8))
    lines += ["broken.mp4,a broken one", "short.mkv,one that ends too soon"]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def overrides(clips) -> list[str]:
    parts: dict[str, list[str]] = {}
    for name, *_, part in CLIPS:
        parts.setdefault(part, []).append(name)
    parts["train"] += ["broken.mp4", "short.mkv"]
    return [f"data.anchors={clips}", f"data.split={json.dumps(parts)}", *SMALLER]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, overrides) -> Path:
    root = tmp_path_factory.mktemp("real") / "run"
    arguments = ["run", "configs/real-clips.yaml", "--dir", str(root)]
    for override in overrides:
        arguments += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "loop.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"done: open {root / 'report.html'}"
    return root


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_any(path: Path) -> None:
    """Opens a file of an artefact as any reader would. Fails for one of an unknown kind."""
    if path.suffix == ".parquet":
        assert pq.read_table(path).num_columns > 0
    elif path.suffix == ".json":
        json.loads(path.read_text(), parse_constant=no_constant)
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=no_constant)
    elif path.suffix == ".mp4":
        frames, fps = read_clip(path)
        assert (frames.shape, fps) == ((17, 32, 32, 3), 8.0)
    elif path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    else:
        assert path.suffix == ".jinja" and path.read_text(), path


@pytest.mark.timeout(300)
def test_every_artefact_is_there_and_every_file_of_it_reads(run_dir):
    store = Store(run_dir)
    for number, stage in plan(1):
        artefact = store.artefact(number, stage)
        manifest = read_manifest(artefact)
        assert manifest is not None and manifest.files
        found = {p.relative_to(artefact).as_posix() for p in artefact.rglob("*") if p.is_file()}
        assert found == {*manifest.files, MANIFEST}
        for name in found:
            read_any(artefact / name)
    assert "<html" in (run_dir / "report.html").read_text()
    assert not list(run_dir.glob("round-*/.work-*"))


def test_every_clip_is_an_anchor_of_its_part_and_the_unusable_ones_are_reported(run_dir):
    prepare = run_dir / "round-000" / "prepare"
    rows = pq.read_table(prepare / "anchors.parquet").to_pylist()
    assert {row["source"]: row["part"] for row in rows} == {name: part for name, *_, part in CLIPS}
    assert all((prepare / row["file"]).is_file() for row in rows)
    reasons = {skip["file"]: skip["reason"] for skip in json.loads((prepare / "skips.json").read_text())}
    assert reasons.keys() == {"broken.mp4", "short.mkv"}
    assert "not a readable video" in reasons["broken.mp4"] and "shorter than" in reasons["short.mkv"]


def test_no_metric_stands_twice_and_no_oracle_knows_a_real_clip(run_dir):
    for number in (0, 1):
        rows = pq.read_table(run_dir / f"round-{number:03d}" / "evaluate" / "metrics.parquet").to_pylist()
        names = [(row["metric"], row["category"]) for row in rows]
        assert len(names) == len(set(names)) and not any("oracle" in name for name, _ in names)
        expected = {"motion_magnitude", "real_motion_magnitude", "fool_rate", "judge_accuracy"}
        if number:
            expected |= {"drift_from_base", "win_rate_vs_base", "win_rate_vs_previous"}
            expected |= {"probe_auc_pixels", "probe_auc_latents"}
        assert expected <= {name for name, _ in names}


@torch.no_grad()
def test_plain_diffusers_films_with_the_checkpoint_what_retake_films(run_dir, overrides):
    from diffusers import WanPipeline, WanTransformer3DModel

    checkpoint = run_dir / "round-001" / "update" / "checkpoint"
    config = load_config("real-clips", overrides).config.generator
    folder = resolve_model(config.model, "generator.model")
    ours = load_model(config.model_copy(update={"model": folder}), checkpoint)
    caption = "The forest on a rainy morning"
    noise = noise_for([7], ours.latent_shape(17, 32, 32))
    want = sample(ours, ours.encode_prompts([caption]), noise, SamplingConfig(num_steps=3))
    plain = WanPipeline.from_pretrained(
        folder, transformer=WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    )
    plain.set_progress_bar_config(disable=True)
    got = plain(
        prompt=caption, height=32, width=32, num_frames=17, num_inference_steps=3, guidance_scale=1.0,
        latents=noise.clone(), max_sequence_length=config.max_text_tokens, output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(want, got, rtol=0, atol=2e-5)


@torch.no_grad()
def test_plain_transformers_reads_the_judge_as_retake_does(run_dir, overrides):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = run_dir / "round-001" / "train_judge" / "judge"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    config = load_config("real-clips", overrides).config.judge.model_copy(update={"model": str(folder)})
    judge = load_judge(config)
    question = Question("q", "take_take", "the forest", _Still("a", 60), _Still("b", 200), config.dimensions)
    batch = Encoder(processor, config).collate([Encoder(processor, config).prompt(Ask(question, False, 0))])
    ours = {name: value.clone() for name, value in batch.items()}
    torch.testing.assert_close(model(**batch).logits, judge.model(**ours).logits, rtol=0, atol=1e-5)
    assert len(judge.vote([Ask(question, False, 0)])) == 1


class _Still:
    def __init__(self, key: str, level: int) -> None:
        self.key, self.level = key, level

    def __call__(self) -> Frames:
        return Frames(np.full((17, 32, 32, 3), self.level, np.uint8), 8.0)
