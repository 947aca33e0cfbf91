"""Model references and the identity of the weights behind them."""

import logging

import pytest
import torch

from generator.config import GeneratorConfig
from generator.models.base import load_model
from loop.config import CampaignConfig
from loop.errors import UserError
from loop.models import EMBEDDED, check_models, model_identity, resolve_model
from loop.stages import StageContext
from loop.steps import update
from loop.steps.common import write_table
from loop.steps.pair import PAIRS
from tests.tiny_wan import make_tiny_wan


def test_references(tmp_path):
    assert resolve_model("embedded:tiny-wan", "generator.model") == str(EMBEDDED / "tiny-wan")
    assert resolve_model("some/model", "generator.model") == "some/model"
    assert resolve_model(str(tmp_path), "generator.model") == str(tmp_path)
    with pytest.raises(UserError, match="embedded:tiny-judge"):
        resolve_model("embedded:tiny-jugde", "judge.model")
    with pytest.raises(UserError, match=r"generator\.model: no folder"):
        resolve_model("./nowhere", "generator.model")


def test_identity_follows_the_files_and_not_the_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    assert model_identity(str(tmp_path / "one")) == model_identity(str(tmp_path / "two"))
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "model.safetensors").write_bytes(b"Weights")
    assert model_identity(str(tmp_path / "three")) != model_identity(str(tmp_path / "one"))
    assert model_identity("some/model") is None


@pytest.mark.parametrize("target", ["no_such_package:Judge", "json:Jugde", "json"])
def test_a_judge_that_cannot_be_imported_stops_the_launch(target):
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {"type": "python", "target": target},
        }
    )
    with pytest.raises(UserError, match=r"judge\.target"):
        check_models(config)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_round_without_pairs_keeps_the_parent(tmp_path, lora):
    folder = make_tiny_wan(tmp_path / "wan")
    for name in ("prepare", "pair", "out"):
        (tmp_path / name).mkdir()
    write_table(tmp_path / "pair" / "pairs.parquet", [], PAIRS)
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": folder, "max_text_tokens": 8},
            "judge": {"model": "embedded:tiny-judge"},
            "update": {"lora": lora},
        }
    )
    inputs = {"prepare": tmp_path / "prepare", "pair": tmp_path / "pair"}
    log = logging.getLogger("retake.test")
    update.run(StageContext(config, 1, inputs, tmp_path / "out", 0, None, log))
    base = load_model(GeneratorConfig(model=folder, max_text_tokens=8))
    kept = load_model(GeneratorConfig(model=folder, max_text_tokens=8), tmp_path / "out" / "checkpoint")
    x, sigma, condition = (
        torch.randn(1, 4, 5, 4, 4),
        torch.tensor([0.5]),
        base.encode_prompts(["a red ring moves up"]),
    )
    torch.testing.assert_close(base.predict(x, sigma, condition), kept.predict(x, sigma, condition))
