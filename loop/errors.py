"""The ways a command ends early; loop/commands/shared.py turns each into its exit code."""

from pathlib import Path


class UserError(ValueError):
    """Something the user can put right: the message says what, where and the remedy. Exit 2."""


class StageFailed(Exception):
    """A stage raised; its traceback is in `log`. Exit 1."""

    def __init__(self, message: str, log: Path):
        super().__init__(f"{message}\nthe full traceback is in {log}")
        self.log = log


class JudgeFailed(Exception):
    """A judge that was asked outside of a campaign could not answer. Exit 1."""


class Stopped(BaseException):
    """SIGINT, SIGTERM, or no room on the disk for the next round. Exit 75, and the same command resumes.

    No Exception (as KeyboardInterrupt), so that no stage swallows it.
    """
