"""Any class of your own as a judge: `judge.target: pkg.module:Class`, or an entry point of retake.judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex, TypeVar

from reward.config import JudgeConfig
from reward.judge import Judge, PlugInFailed, check_votes, import_target
from reward.question import Ask, Vote

Result = TypeVar("Result")


class PlugIn:
    """Calls a judge that retake does not know, checks its votes, and says whose fault an exception is."""

    def __init__(self, make: Callable[[JudgeConfig], Any], config: JudgeConfig, name: str) -> None:
        """`name` is what messages call it. Raises ValueError for what is no judge, PlugInFailed."""
        self.name = name
        inner = self._call("making it", lambda: make(config))
        if not isinstance(inner, Judge):
            raise ValueError(f"{name} is no judge: it needs vote, identity and close")
        self.inner: Judge = inner

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """Its votes. Raises ValueError where they do not match the asks, PlugInFailed."""
        taken = _Taken(asks)
        return check_votes(asks, self._call(taken, lambda: self.inner.vote(taken)), self.name)

    def identity(self) -> str:
        return self._call("its identity()", self.inner.identity)

    def close(self) -> None:
        self._call("its close()", self.inner.close)

    def _call(self, where: object, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except Exception as error:
            raise PlugInFailed(f"{self.name} raised {type(error).__name__} in {where}: {error}") from error


class PythonJudge(PlugIn):
    """A judge for `judge.type: python`."""

    def __init__(self, config: JudgeConfig) -> None:
        assert config.target is not None, "JudgeConfig requires a target for type python"
        self.target = config.target
        super().__init__(
            import_target(config.target, "judge.target"), config, f"judge.target {config.target!r}"
        )

    def identity(self) -> str:
        return f"python:{self.target}:{super().identity()}"


class _Taken(list[Ask]):
    """The asks of one call. As text: which of them was taken last, for the message where the judge raises."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        super().__init__(asks)
        self.last = 0

    def __iter__(self) -> Iterator[Ask]:
        for self.last, ask in enumerate(super().__iter__()):
            yield ask

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, SupportsIndex):
            self.last = range(len(self))[index]
        return super().__getitem__(index)

    def __str__(self) -> str:
        if not self:
            return "its vote()"
        ask = super().__getitem__(self.last)
        return f"its vote(), at question {ask.question.id!r} (ask {self.last + 1} of {len(self)})"
