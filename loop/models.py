"""Where model references point: a folder, a hub id, or `embedded:NAME` for weights that ship with retake."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from loop.config import CampaignConfig
from loop.errors import UserError
from reward.config import JudgeConfig, TrainJudgeConfig
from reward.judge import PlugInFailed, check_judge_type, import_target, load_judge
from reward.scorers.head import HEAD_FILE, check_scorer
from reward.vllm_config import find_executable

EMBEDDED = Path(__file__).parent / "embedded"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
ASKS_IN_WORDS = ("transformers", "vllm")  # types whose judge.model train_judge loads, in process


def check_models(config: CampaignConfig) -> None:
    """Raise UserError for what no stage could load. No weights are read, no server asked."""
    _check_files(config)
    check_judge(config.judge)
    if config.held_out_judge is not None:
        check_judge(config.held_out_judge, "held_out_judge")
    if config.rounds:
        check_training(config)
    _check_folder(
        resolve_model(config.generator.model, "generator.model"), "generator.model", "model_index.json"
    )


def _check_files(config: CampaignConfig) -> None:
    """Raise UserError for a folder or file of the data section that is not there."""
    data = config.data
    if data.anchors != "embedded" and not Path(data.anchors).expanduser().is_dir():
        raise UserError(
            f"data.anchors: {data.anchors}: no such folder; set data.anchors to a folder of clips with "
            "metadata.csv"
        )
    for key in ("human_pairs", "prompts"):
        name = getattr(data, key)
        if name not in (None, "embedded") and not Path(name).expanduser().is_file():
            raise UserError(f"data.{key}: {name}: no such file; correct the path")


def check_judge(judge: JudgeConfig, key: str = "judge") -> None:
    """Raise UserError for a judge that cannot be loaded. No weights are read, no server asked."""
    try:
        check_judge_type(judge.type)
        if judge.target is not None:
            import_target(judge.target, f"{key}.target")
        if judge.type == "openai" and judge.server is not None:
            judge.server.api_key()
        if judge.type == "vllm" and judge.vllm is not None:
            find_executable(judge.vllm.executable)
        if judge.type == "human":
            load_judge(judge).close()  # reads nothing but the table
        if judge.type == "scorer":
            check_scorer(with_weights(judge))
    except (ValueError, PlugInFailed) as error:
        raise UserError(str(error)) from None
    if has_weights_here(judge):
        assert judge.model is not None
        _check_folder(resolve_model(judge.model, f"{key}.model"), f"{key}.model", "config.json")


def check_training(config: CampaignConfig) -> None:
    """Raise UserError for training that the judge or the number of votes does not allow."""
    settings, judge = config.train_judge, config.judge
    if not can_learn(judge) and _num_steps(settings):
        what = f"type {judge.type}" if judge.type not in ASKS_IN_WORDS else f"reply {judge.reply}"
        what += " with a checklist" if judge.type == "scorer" else ""
        raise UserError(
            f"judge.{what} cannot be trained; set train_judge.num_steps and preference_steps to 0 to use it "
            "as it is (grpo_steps and cold_start_steps too), or use a transformers judge with judge.reply "
            "retake"
        )
    if judge.type == "scorer" and settings.preference_steps:
        raise UserError(
            "judge.type scorer writes no reasoning to prefer; set train_judge.preference_steps to 0, it "
            "learns from known answers"
        )
    if settings.preference_steps and settings.own_questions is None and config.label.voting.num_ballots < 2:
        raise UserError(
            "train_judge.preference_steps compares right with wrong answers to the same message, but "
            "label.voting.num_ballots 1 gives one answer to each: set train_judge.own_questions, so that "
            "some questions are asked again, or num_ballots to 2 or more, or preference_steps to 0"
        )
    if judge.scoring.new_head:
        _check_new_head(config)
    if config.judge.type == "human" and config.alarms is not None and config.alarms.num_probes:
        raise UserError(
            "judge.type is human, and nobody answered the probes of alarms: set alarms.num_probes to 0"
        )
    if config.judge.type == "human" and config.known_answers.num_calibrate:
        raise UserError(
            "judge.type human cannot be calibrated, since nobody answered the known questions; set "
            "known_answers.num_calibrate to 0"
        )


def _check_new_head(config: CampaignConfig) -> None:
    if not config.train_judge.num_steps:
        raise UserError(
            "judge.scorer.new_head is a head of zeros, but train_judge.num_steps is 0: raise it, or give a "
            "scorer"
        )
    if config.gate.enabled and is_judge_untrained(config.measuring_judge):
        raise UserError(
            "judge.scorer.new_head is a head of zeros, and the gate asks the judge as it came: set "
            "gate.enabled to false to train a scorer, then give its train_judge/judge folder as "
            "judge.model of a campaign with a gate"
        )


def is_judge_untrained(judge: JudgeConfig) -> bool:
    """Whether it is a scorer with a head of zeros, which prefers nothing."""
    if not judge.scoring.new_head:
        return False
    assert judge.model is not None
    return not (Path(resolve_model(judge.model, "judge.model")) / HEAD_FILE).is_file()


def _num_steps(settings: TrainJudgeConfig) -> int:
    return (
        settings.num_steps
        + settings.preference_steps
        + settings.grpo_steps
        + (settings.cold_start_steps or 0)
    )


def can_learn(judge: JudgeConfig) -> bool:
    """Whether train_judge can train it: a vision-language model that is asked in our own form of reply, as
    known answers are, or a reward head on one."""
    if judge.type == "scorer":
        return judge.scoring.head == "linear"
    return judge.type in ASKS_IN_WORDS and judge.reply == "retake"


def makes_judge(config: CampaignConfig) -> bool:
    """Whether train_judge has a step to make; else it leaves the judge as it came, without loading it."""
    return can_learn(config.judge) and _num_steps(config.train_judge) > 0


def with_weights(judge: JudgeConfig, trained: Path | None = None) -> JudgeConfig:
    """`judge` with the folder that a train_judge artefact holds as its model, else with its own, resolved."""
    if not has_weights_here(judge):
        return judge
    assert judge.model is not None
    own = trained_folder(judge, trained)
    model = resolve_model(judge.model, "judge.model") if own is None else str(own)
    return judge.model_copy(update={"model": model})


def trained_folder(judge: JudgeConfig, trained: Path | None) -> Path | None:
    """The weights in a train_judge artefact; None where that left the judge as it came."""
    if trained is None or not can_learn(judge):
        return None
    folder = trained / "judge"
    return folder if folder.is_dir() else None


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
