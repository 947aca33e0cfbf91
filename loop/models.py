"""Where model references point: a folder, a hub id, or `embedded:NAME` for weights that ship with retake."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from loop.config import CampaignConfig
from loop.errors import UserError
from reward.config import JudgeConfig
from reward.judge import check_judge_type, import_target, load_judge
from reward.vllm_config import find_executable

EMBEDDED = Path(__file__).parent / "embedded"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
TRAINABLE = ("transformers", "vllm")  # types whose judge.model train_judge loads, in process


def check_models(config: CampaignConfig) -> None:
    """Raise UserError for what no stage could load. No weights are read, no server asked."""
    check_judge(config.judge)
    if config.rounds:
        check_training(config)
    _check_folder(
        resolve_model(config.generator.model, "generator.model"), "generator.model", "model_index.json"
    )


def check_judge(judge: JudgeConfig) -> None:
    """Raise UserError for a judge that cannot be loaded. No weights are read, no server asked."""
    try:
        check_judge_type(judge.type)
        if judge.target is not None:
            import_target(judge.target, "judge.target")
        if judge.type == "openai" and judge.server is not None:
            judge.server.api_key()
        if judge.type == "vllm" and judge.vllm is not None:
            find_executable(judge.vllm.executable)
        if judge.type == "human":
            load_judge(judge).close()  # reads nothing but the table
    except ValueError as error:
        raise UserError(str(error)) from None
    if has_weights_here(judge):
        assert judge.model is not None
        _check_folder(resolve_model(judge.model, "judge.model"), "judge.model", "config.json")


def check_training(config: CampaignConfig) -> None:
    """Raise UserError for a judge that is to be trained, but of a type that cannot be."""
    settings = config.train_judge
    if config.judge.type not in TRAINABLE and (settings.num_steps or settings.preference_steps):
        raise UserError(
            f"judge.type {config.judge.type} cannot be trained; set train_judge.num_steps and "
            "preference_steps to 0 to use it as it is, or use a transformers judge"
        )
    if config.judge.type == "human" and config.known_answers.num_calibrate:
        raise UserError(
            "judge.type human cannot be calibrated, since nobody answered the known questions; set "
            "known_answers.num_calibrate to 0"
        )


def makes_judge(config: CampaignConfig) -> bool:
    """Whether train_judge writes a judge folder, and does not leave the judge as it came.

    Of type vllm only where there is a step to make: what a server holds may be too large for this process.
    """
    trains = config.train_judge.num_steps > 0 or config.train_judge.preference_steps > 0
    return config.judge.type == "transformers" or (config.judge.type in TRAINABLE and trains)


def with_weights(judge: JudgeConfig, trained: Path | None) -> JudgeConfig:
    """`judge` with the folder that a train_judge artefact holds as its model, else with its own, resolved."""
    if not has_weights_here(judge):
        return judge
    assert judge.model is not None
    own = trained_folder(judge, trained)
    model = resolve_model(judge.model, "judge.model") if own is None else str(own)
    return judge.model_copy(update={"model": model})


def trained_folder(judge: JudgeConfig, trained: Path | None) -> Path | None:
    """The weights in a train_judge artefact; None where that left the judge as it came."""
    if trained is None or judge.type not in TRAINABLE:
        return None
    folder = trained / "judge"
    return folder if judge.type == "transformers" or folder.is_dir() else None


def has_weights_here(judge: JudgeConfig) -> bool:
    """Whether judge.model names weights on this machine or the hub, and not what a server calls its own."""
    return judge.model is not None and judge.type != "openai"


def _check_folder(resolved: str, key: str, marker: str) -> None:
    folder = Path(resolved)
    if not folder.is_dir():
        return  # a hub id
    if not (folder / marker).is_file():
        raise UserError(f"{key}: {folder} holds no {marker}; give a folder that save_pretrained wrote")
    for file in sorted(folder.rglob("*")):
        if file.suffix in _PICKLES and not any(file.parent.glob("*.safetensors")):
            raise UserError(
                f"{key}: {file} is a pickle, which can run code when loaded; "
                "retake loads safetensors only: save the model again with safetensors"
            )


def resolve_model(reference: str, key: str) -> str:
    """The folder or hub id that `from_pretrained` takes. `key` names the config key in messages."""
    if reference.startswith("embedded:"):
        folder = EMBEDDED / reference.removeprefix("embedded:")
        if not folder.is_dir():
            have = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.glob("tiny-*")))
            raise UserError(f"{key}: no such model {reference!r}; shipped with retake: {have}")
        return str(folder)
    looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    path = Path(reference).expanduser()
    if path.is_dir():
        return str(path)
    if looks_like_path:
        raise UserError(
            f"{key}: no folder {reference!r}; "
            "give a model folder, a hub id ORGANISATION/NAME, or embedded:NAME"
        )
    return reference


# bytes; of larger files the first mebibyte is read: a safetensors header and some weights
_WHOLE_FILE = 64 * 2**20


@cache
def model_identity(resolved: str) -> str | None:
    """A hash of a model folder's files (names, sizes, content), or None for a hub id.

    It stands in the fingerprints: a run must not go on with other weights under the same name.
    """
    folder = Path(resolved)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(size if size <= _WHOLE_FILE else 2**20))
    return digest.hexdigest()[:16]
