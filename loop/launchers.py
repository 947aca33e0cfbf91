"""Where a stage runs. The stage functions are the same under every launcher."""

import importlib
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Protocol

from loop.config import CampaignConfig
from loop.stages import Stage, StageContext


class Launcher(Protocol):
    def launch(self, stage: Stage, context: StageContext) -> None:
        """Run the stage to its end. Raises whatever the stage raises."""
        ...


class InlineLauncher:
    """In this process, one stage after the other."""

    def __init__(self, config: CampaignConfig):
        if config.threads is None:
            return
        # The libraries read these when they are first imported, which no stage has done yet.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(config.threads)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(config.threads)

    def launch(self, stage: Stage, context: StageContext) -> None:
        function = stage.resolve()
        _quieten_libraries()
        _seed_libraries(context.seed)  # after the import: a resumed process then draws as this one does
        function(context)


def _quieten_libraries() -> None:
    """Bars of weight files say nothing beside the stage's own; what libraries log goes to the stage's log."""
    warnings.filterwarnings("ignore", "Already found a `peft_config`")  # policy and reference adapters: meant
    if "torch" not in sys.modules:
        return
    for library in ("transformers", "diffusers"):
        logs = importlib.import_module(f"{library}.utils.logging")
        logs.disable_progress_bar()  # of loading and saving; downloads keep theirs
        logs.disable_default_handler()
        logs.enable_propagation()


def _seed_libraries(seed: int) -> None:
    """The global generators of the libraries that are loaded: no stage sees what an earlier one drew."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


LAUNCHERS: dict[str, Callable[[CampaignConfig], Launcher]] = {"inline": InlineLauncher}
