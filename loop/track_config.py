"""The section `track` of a campaign: where its numbers are shown while it runs. Torch-free.

It belongs to no fingerprint: a run may go on with other trackers, or without.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class _Tracker(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorBoardConfig(_Tracker):
    """Event files; nothing leaves the machine."""

    type: Literal["tensorboard"]
    # of all campaigns: each writes into a folder of its own in it; none = RUN/logs/tensorboard
    directory: Text | None = None

    @property
    def destination(self) -> str:
        return f"tensorboard {self.directory or ''}".rstrip()


class WandbConfig(_Tracker):
    """Weights & Biases. Its files lie in RUN/logs/wandb; its key never stands in a config."""

    type: Literal["wandb"]
    project: Text = "retake"
    entity: Text | None = None  # none = the account's default
    name: Text | None = None  # none = the campaign's
    group: Text | None = None
    tags: list[Text] = []
    mode: Literal["online", "offline"] | None = None  # none = what $WANDB_MODE says, else online

    @property
    def destination(self) -> str:
        where = f"{self.entity}/{self.project}" if self.entity else self.project
        return f"wandb {where}{f' {self.mode}' if self.mode else ''}"


class TrackioConfig(_Tracker):
    """trackio: a local database in $TRACKIO_DIR, or a Space of the Hugging Face Hub."""

    type: Literal["trackio"]
    project: Text = "retake"
    name: Text | None = None  # none = the campaign's; an id of the run directory is added to either
    space: Text | None = None  # OWNER/NAME; none = the local database

    @property
    def destination(self) -> str:
        return f"trackio {self.space or 'local'} {self.project}"


TrackerConfig = Annotated[TensorBoardConfig | WandbConfig | TrackioConfig, Field(discriminator="type")]
