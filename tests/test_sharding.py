"""An update whose weights two processes share (FSDP2 over gloo) is the update of one process.

Run as a script under torchrun this file is one of the two: `torchrun … tests/test_sharding.py FOLDER`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from generator.config import GeneratorConfig, LoraConfig, UpdateConfig
from generator.models.base import load_model
from generator.sharding import Sharding, blocks_of
from generator.train import update
from tests.test_update import difference, make_anchors, make_pairs
from tests.tiny_families import make_wan
from tests.tiny_wan import make_tiny_wan

ROOT = Path(__file__).parent.parent
TERMS = {
    "learning_rate": 1e-3, "num_steps": 4, "pairs_per_step": 4, "anchors_per_step": 2, "micro_batches": 2,
    "held_out_share": 0.2, "evaluate_every": 2, "checkpoint_every": 2, "warmup_steps": 0, "beta": 50.0,
    "winner_likelihood": 0.5, "real_likelihood": 0.5, "reduction": "frame",
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8.0}
EMA = {"reference": "ema", "ema_every": 1, "ema_decay": 0.5}
CASES: dict[str, dict] = {
    # an epoch of the eight pairs takes two steps, so from the fifth on the reference's errors are known
    "full": {
        "parent": True, "average": 0.9, "reference_draws": 2, "num_steps": 6, "evaluate_every": 1,
        "activation_checkpointing": True,
    },
    "lora": {"parent": True, "lora": LORA, **EMA, "num_steps": 3},
    # a rank has one pair, so one expert; in some steps no rank has a pair for the other one
    "experts": {
        "model": "experts", **EMA, "pairs_per_step": 2, "real_likelihood": 0.0, "timesteps": "uniform",
        "sigma_range": (0.75, 1.0),
    },
    # its norms are float32
    "bfloat16": {"dtype": "bfloat16", "num_steps": 2},
}  # fmt: skip
RESUMED = {"full": 2}  # the step in which an update breaks off


class BreaksOff(Exception):
    pass


def settings(case: str) -> tuple[str, str, dict]:
    """(model's folder, dtype, update terms) of a case."""
    terms = {**TERMS, **CASES[case]}
    terms.pop("parent", None)
    return terms.pop("model", "wan"), terms.pop("dtype", "float32"), terms


def train(
    folder: Path, case: str, out: Path, sharding: Sharding | None, breaks_at: int | None = None
) -> list[dict]:
    """Runs the update of a case; returns the log's rows."""
    name, dtype, terms = settings(case)
    model = load_model(GeneratorConfig(model=str(folder / name), max_text_tokens=8, dtype=dtype))
    rows: list[dict] = []

    def on_step(row: dict) -> None:
        rows.append(row)
        if row["step"] == breaks_at:
            raise BreaksOff

    kind = "parent-lora" if "lora" in terms else "parent-full"
    parent = folder / kind / "checkpoint" if CASES[case].get("parent") else None
    out.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if case == "full":
            # no held-out step is kept: writing it would drop the gathered weights, which must not be needed
            patch.setattr("generator.train.near_best", lambda *_: False)
        update(
            model, make_pairs(model), make_anchors(model), UpdateConfig(**terms), parent=parent, out=out,
            seed=3, on_step=on_step, sharding=sharding,
        )  # fmt: skip
    return rows


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "checkpoint").rglob("*.safetensors"))
    return {f"{file.parent.name}/{n}": t for file in files for n, t in load_file(file).items()}


def make_parents(folder: Path) -> None:
    model_config = GeneratorConfig(model=str(folder / "wan"), max_text_tokens=8)
    for kind, lora in (("full", None), ("lora", LoraConfig(**LORA))):
        model, out = load_model(model_config), folder / f"parent-{kind}"
        terms = {**TERMS, "num_steps": 1, "held_out_share": 0.0}
        out.mkdir()
        update(
            model, make_pairs(model), make_anchors(model), UpdateConfig(**terms, lora=lora), parent=None,
            out=out, seed=1, on_step=lambda row: None,
        )  # fmt: skip


def run_on_two_ranks(folder: Path) -> None:
    """Every case, and those of RESUMED once more, broken off and resumed."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rows = {case: train(folder, case, folder / "two" / case, Sharding()) for case in CASES}
    for case, step in RESUMED.items():
        out = folder / "resumed" / case
        with contextlib.suppress(BreaksOff):
            train(folder, case, out, Sharding(reshard_after_forward=False), breaks_at=step)
        if dist.get_rank() == 0:
            shutil.copytree(out, folder / "handed-over" / case)
        dist.barrier()
        train(folder, case, out, Sharding(reshard_after_forward=False))
    if dist.get_rank() == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def one_thread():
    """As the ranks: threads cut sums otherwise, and Adam divides by gradients that are rounding alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with all cases as trained by two processes."""
    folder = tmp_path_factory.mktemp("sharding")
    make_tiny_wan(folder / "wan")
    make_wan(folder / "experts", two_experts=True)
    make_parents(folder)
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*starter, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_the_weights_are_one(trained, tmp_path, case):
    rows = train(trained, case, tmp_path, None)
    one, two = weights(tmp_path), weights(trained / "two" / case)
    # in bfloat16 a sum in another order may end on the neighbouring number
    assert difference(one, two) < (1e-6 if case != "bfloat16" else 1e-2)
    assert {n: t.dtype for n, t in one.items()} == {n: t.dtype for n, t in two.items()}
    for a, b in zip(rows, json.loads((trained / "rows.json").read_text())[case], strict=True):
        close = {"rel": 1e-4, "abs": 1e-5} if case != "bfloat16" else {"rel": 0.05, "abs": 0.05}
        assert all(a[k] == pytest.approx(b[k], **close) for k in a if k != "split")
    for file in (tmp_path / "checkpoint").rglob("*.json"):
        assert file.read_bytes() == (trained / "two" / case / file.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_sharded_update_ends_in_the_same_bytes(trained, case):
    for file in (trained / "two" / case / "checkpoint").rglob("*.safetensors"):
        other = trained / "resumed" / file.relative_to(trained / "two")
        assert file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("case", RESUMED)
def test_one_process_goes_on_from_what_two_began(trained, case):
    out = trained / "handed-over" / case
    saved = torch.load(out / "_scratch" / "state.pt", weights_only=True)
    assert saved["progress"]["step"] == RESUMED[case]
    assert not any("DTensor" in type(t).__name__ for t in saved["weights"].values())
    rows = train(trained, case, out, None)
    assert rows[0]["step"] == RESUMED[case]
    assert difference(weights(out), weights(trained / "two" / case)) < 1e-6


def test_plain_diffusers_loads_the_checkpoints(trained):
    from diffusers import WanPipeline, WanTransformer3DModel

    full = trained / "two" / "full" / "checkpoint" / "transformer"
    loaded = WanTransformer3DModel.from_pretrained(full)
    assert difference(dict(loaded.state_dict()), load_file(full / "diffusion_pytorch_model.safetensors")) == 0
    pipe = WanPipeline.from_pretrained(trained / "wan")
    pipe.load_lora_weights(str(trained / "two" / "lora" / "checkpoint"))
    assert pipe.get_active_adapters() == ["default_0"]


def test_blocks_are_what_is_never_split(trained):
    transformer = load_model(GeneratorConfig(model=str(trained / "wan"), max_text_tokens=8)).transformer
    assert blocks_of(transformer) == list(transformer.blocks)[::-1]
    type(transformer)._no_split_modules, names = None, type(transformer)._no_split_modules
    try:
        assert blocks_of(transformer) == list(transformer.blocks)[::-1]
    finally:
        type(transformer)._no_split_modules = names


def test_sharding_needs_processes(trained, tmp_path):
    with pytest.raises(ValueError, match=r"launch\.type accelerate"):
        train(trained, "full", tmp_path, Sharding())


if __name__ == "__main__":
    run_on_two_ranks(Path(sys.argv[1]))
