"""Any class of your own as a judge: `judge.type: python`, `judge.target: pkg.module:Class`."""

from __future__ import annotations

from collections.abc import Sequence

from reward.config import JudgeConfig
from reward.judge import Judge, check_votes, import_target
from reward.question import Ask, Vote


class PythonJudge:
    """Calls the target and checks every vote that it returns."""

    def __init__(self, config: JudgeConfig) -> None:
        assert config.target is not None, "JudgeConfig requires a target for type python"
        self.target = config.target
        inner = import_target(config.target, "judge.target")(config)
        if not isinstance(inner, Judge):
            raise ValueError(f"judge.target {config.target!r} is no judge: it needs vote, identity and close")
        self.inner: Judge = inner

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """The target's votes. Raises ValueError where they do not match the asks."""
        return check_votes(asks, self.inner.vote(asks), f"judge.target {self.target!r}")

    def identity(self) -> str:
        return f"python:{self.target}:{self.inner.identity()}"

    def close(self) -> None:
        self.inner.close()
