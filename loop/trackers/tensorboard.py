"""TensorBoard through its own writer, which needs no torch: the controller stays light."""

from pathlib import Path
from typing import Any

from loop.points import Point
from loop.track_config import TensorBoardConfig
from loop.trackers import RunToTrack


def check(config: TensorBoardConfig, key: str) -> None:
    pass  # it needs nothing but its package


def start(config: TensorBoardConfig, run: RunToTrack) -> "TensorBoard":
    from tensorboard.summary import Writer

    if config.directory is None:
        folder = run.root / "logs" / "tensorboard"
    else:
        folder = Path(config.directory).expanduser() / run.id
    return TensorBoard(Writer(str(folder)), f"tensorboard --logdir {folder}")


class TensorBoard:
    def __init__(self, writer: Any, where: str):
        self._writer, self.where = writer, where

    def log(self, point: Point, number: int) -> None:
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step)
        self._writer.flush()

    def finish(self, done: bool) -> None:
        self._writer.close()
