"""Weights & Biases."""

import os
from typing import Any

from loop.errors import UserError
from loop.points import AXES, Point
from loop.track_config import WandbConfig
from loop.trackers import RunToTrack

SECONDS_TO_UPLOAD = 12.0  # at the end; what is late stays on the disk for `wandb sync`


def check(config: WandbConfig, key: str) -> None:
    said = os.environ.get("WANDB_MODE", "")
    if said in ("disabled", "dryrun") or (config.mode == "online" and said == "offline"):
        raise UserError(
            f"{key}: $WANDB_MODE is {said}, but the config wants the run {config.mode or 'tracked'}; unset "
            f"the variable, set {key}.mode to offline, or remove the tracker"
        )
    if (config.mode or said) == "offline":
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            f"{key}: wandb has no key; run `wandb login`, set $WANDB_API_KEY, or set {key}.mode to offline"
        )


def start(config: WandbConfig, run: RunToTrack) -> "Wandb":
    import wandb

    folder = run.root / "logs"  # wandb makes its own folder in it
    settings = wandb.Settings(console="off", silent=True, finish_timeout=SECONDS_TO_UPLOAD)
    opened = wandb.init(
        project=config.project, entity=config.entity, group=config.group, tags=config.tags or None,
        name=config.name or run.name, id=run.id, resume="allow", mode=config.mode, dir=str(folder),
        config=run.config, settings=settings,
    )  # fmt: skip
    for axis in sorted(set(AXES.values())):
        opened.define_metric(axis)
    for first, axis in AXES.items():
        opened.define_metric(f"{first}/*", step_metric=axis)
    return Wandb(opened)


class Wandb:
    def __init__(self, run: Any):
        self._run = run
        self.where = run.url or f"offline in {run.dir}"

    def log(self, point: Point, number: int) -> None:
        # an explicit step, since that of a run resumed offline would begin again
        self._run.log({**point.values, point.axis: point.step}, step=number, commit=True)

    def finish(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)
