"""trackio: a local database, or a Space of the Hugging Face Hub."""

import contextlib
import os
import sys
from typing import Any

from loop.errors import UserError
from loop.points import Point
from loop.track_config import TrackioConfig
from loop.trackers import RunToTrack


def check(config: TrackioConfig, key: str) -> None:
    if config.space is None:
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{key}.space needs the network, but $HF_HUB_OFFLINE is set; unset one of them")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            f"{key}.space needs a key of the Hugging Face Hub; run `hf auth login`, set $HF_TOKEN, or remove "
            "space to track into the local database"
        )


def start(config: TrackioConfig, run: RunToTrack) -> "Trackio":
    import trackio

    name = run.id if config.name is None else f"{config.name}-{run.id.rpartition('-')[2]}"
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for data
        opened = trackio.init(
            project=config.project, name=name, space_id=config.space, config=run.config, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
    return Trackio(opened, config.space or f"trackio show --project {config.project}")


class Trackio:
    def __init__(self, run: Any, where: str):
        self._run, self.where = run, where

    def log(self, point: Point, number: int) -> None:
        self._run.log(dict(point.values), step=point.step)

    def finish(self, done: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()
