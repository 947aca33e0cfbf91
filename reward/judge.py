"""What a judge is, and how one is found: `judge.type` names a built-in, a plug-in, or a class of your own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from reward.config import JudgeConfig
from reward.question import ANSWERS, Ask, Vote


@runtime_checkable
class Judge(Protocol):
    """Anything that answers asks. A vote depends on its ask (and its seed) alone, never on the batch."""

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """One vote for each ask, in the same order; a reply that cannot be read is an abstention."""
        ...

    def identity(self) -> str:
        """A hash of all that decides the votes: weights, wording, processor."""
        ...

    def close(self) -> None:
        """Give back what the judge holds."""
        ...


class PlugInFailed(RuntimeError):
    """A class that is not ours raised; the message names it and the question."""


# dotted paths, so that naming a type imports nothing
JUDGES: dict[str, str] = {
    "transformers": "reward.judges.transformers:TransformersJudge",
    "scorer": "reward.judges.scorer:ScorerJudge",
    "openai": "reward.judges.openai:OpenAIJudge",
    "vllm": "reward.judges.vllm:VllmJudge",
    "python": "reward.judges.python:PythonJudge",
    "human": "reward.judges.human:HumanJudge",
}


def load_judge(config: JudgeConfig) -> Judge:
    """The judge that `config.type` names, called with `config`.

    Raises ValueError for an unknown type (with the nearest valid one) or a target that is no judge.
    """
    check_judge_type(config.type)
    if config.type in JUDGES:
        judge: Judge = import_target(JUDGES[config.type], "judge.type")(config)
        return judge
    from reward.judges.python import PlugIn

    point = next(iter(entry_points(group="retake.judges", name=config.type)))
    return PlugIn(lambda given: point.load()(given), config, f"judge.type {config.type!r} ({point.value})")


def check_judge_type(name: str) -> None:
    """Raise ValueError unless `name` is a built-in or an installed entry point of the group retake.judges."""
    plug_ins = {point.name for point in entry_points(group="retake.judges")}
    if name in JUDGES or name in plug_ins:
        return
    valid = [*JUDGES, *sorted(plug_ins)]
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"judge.type: unknown type {name!r}{hint} Valid: {', '.join(valid)}")


def import_target(target: str, key: str) -> Any:
    """The object at `pkg.module:Name`.

    Raises ValueError that names the config's `key`, and PlugInFailed where the module itself raises.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"{key}: {target!r} is not of the form pkg.module:Class")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{key}: cannot import {module!r} ({error}); install it or correct the path"
        ) from error
    except Exception as error:
        raise PlugInFailed(f"{key}: importing {module!r} raised {type(error).__name__}: {error}") from error
    if not hasattr(loaded, name):
        close = difflib.get_close_matches(name, dir(loaded), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{key}: {module!r} has no {name!r}{hint}")
    return getattr(loaded, name)


def check_votes(asks: Sequence[Ask], votes: Sequence[Vote], judge: str) -> list[Vote]:
    """The votes, if each answers its ask. Raises ValueError for a judge that loses or mixes up votes, or
    whose answers are other words than ours, which nothing would count."""
    if not isinstance(votes, Sequence) or not all(isinstance(vote, Vote) for vote in votes):
        raise ValueError(f"{judge} returned no list of votes; make them with reward.question.vote_of")
    if len(votes) != len(asks):
        raise ValueError(
            f"{judge} returned {len(votes)} votes for {len(asks)} asks; it must return one for each"
        )
    for ask, vote in zip(asks, votes, strict=True):
        if (vote.question_id, vote.swapped, vote.ballot) != (ask.question.id, ask.swapped, ask.ballot):
            raise ValueError(f"{judge} answered another ask in place of {ask.question.id!r}; keep the order")
        if vote.answers is not None and set(vote.answers) != set(ask.question.dimensions):
            raise ValueError(
                f"{judge} answered {sorted(vote.answers)} where {ask.question.id!r} asks for "
                f"{sorted(ask.question.dimensions)}; abstain instead"
            )
        strange = [word for word in (vote.answers or {}).values() if word not in ANSWERS]
        if strange:
            raise ValueError(
                f"{judge} answered {strange[0]!r} to {ask.question.id!r}; an answer is one of "
                f"{', '.join(ANSWERS)}"
            )
    return list(votes)
