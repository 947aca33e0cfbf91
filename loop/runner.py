"""Runs one stage: skip it if it is committed, else check, launch, commit, and log what happened."""

import contextlib
import errno
import hashlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loop.branch import read_origin
from loop.config import CampaignConfig, changed_keys
from loop.errors import StageFailed, UserError
from loop.eta import durations, outlook
from loop.forecast import check_room
from loop.launchers import LAUNCHERS
from loop.logs import LineFormatter
from loop.models import has_weights_here, model_identity, resolve_model
from loop.progress import Display
from loop.progress_file import FILE, RecordedProgress
from loop.seed_reasoning import seed_identity
from loop.stages import EVERY_ROUND, Stage, StageContext, derive_seed, plan
from loop.store import MANIFEST, NO_SPACE, Store, environment, fingerprint, read_manifest
from reward.config import JudgeConfig, without_transport
from reward.scorers.checklist import checklist_digest

# what the controller itself reads of artefacts, before a stage that would have them hashed
READ_HERE = ("gate.json", "metrics.parquet", "anchors.parquet", "prompts.parquet")
USER_STAGES = ("prepare",)  # reads what the user gave: its ValueErrors are about that, not about our code


class StageRunner:
    def __init__(self, config: CampaignConfig, store: Store, stages: Mapping[str, Stage], display: Display):
        self.config, self.store, self.stages, self.display = config, store, stages, display
        self.launcher = LAUNCHERS[config.launch.type](config)
        self.environment = environment(config.threads)
        self.attempt: Path | None = None
        self._fingerprints: dict[Path, str] = {}  # of committed artefacts
        self.has_begun = False  # a round, in this launch
        origin = read_origin(store.root)
        self.shared_rounds = -1 if origin is None else origin.round  # up to here another config holds

    def check_existing(self) -> None:
        """Compare everything committed with this config, before anything is written.

        Raises UserError naming the keys that changed, or the file that is damaged, and for fewer rounds than
        have begun.
        """
        begun = self.store.last_round()
        if begun > self.config.rounds:
            raise UserError(
                f"{self.store.root} has begun round {begun}, but rounds is {self.config.rounds}; give "
                f"--rounds {begun} or more, or `retake branch` it from round {self.config.rounds}"
            )
        differing: dict[str, None] = {}
        others: dict[str, None] = {}  # versions of retake
        for round, name in plan(self.config.rounds):
            self.store.finish_interrupted(round, name)
            artefact = self.store.artefact(round, name)
            manifest = read_manifest(artefact)
            if manifest is None:
                self._check_not_shared(round, artefact)
                continue
            self.store.check_manifest(artefact, manifest)
            self.store.check_sizes(artefact, manifest)
            self.store.check_contents(artefact, {n: f for n, f in manifest.files.items() if n in READ_HERE})
            self._fingerprints[artefact] = manifest.fingerprint
            if round <= self.shared_rounds:
                continue
            for key in changed_keys(manifest.config, self._slice(self.stages[name])):
                differing[f"  {key}, used by {artefact.relative_to(self.store.root)}"] = None
                if (version := manifest.environment.get("retake")) != self.environment["retake"]:
                    others[f"retake {version}"] = None
            # Bytes may now differ from an uninterrupted run; the run stays valid.
            for key in changed_keys(manifest.environment, self.environment):
                self.display.warn_once(f"this run was begun with another {key}")
        if differing:
            made_by = f" by {' and '.join(others)}, this is {self.environment['retake']}" if others else ""
            remedy = "; where a key is new, continue with the version that began the run" if others else ""
            raise UserError(
                f"{self.store.root} was begun with another config{made_by}:\n"
                + "\n".join(differing)
                + "\nrevert these keys to continue the run, or choose another --dir (or name) for a new one"
                + remedy
            )

    def _check_not_shared(self, round: int, artefact: Path) -> None:
        """Raises UserError for an artefact that a branch took over: this config could not make it again."""
        if round <= self.shared_rounds:
            raise UserError(
                f"{artefact} is missing: it is of the rounds that this run took from another one "
                "(branch.json); restore it, or branch again into another --dir"
            )

    def begin_round(self, round: int) -> None:
        """Raises Stopped if the disk will not hold what the round still has to make."""
        if all((self.store.artefact(round, stage) / MANIFEST).is_file() for stage in EVERY_ROUND):
            return
        check_room(self.store, self.config, round, self.display, announce=not self.has_begun)
        self.has_begun = True

    def run(self, round: int, name: str, **inputs: Path | None) -> Path:
        """The committed artefact of a stage, made now if need be. None = this input does not exist yet."""
        stage = self.stages[name]
        given = {key: path for key, path in inputs.items() if path is not None}
        stage.check_inputs(given)
        config = self._slice(stage)
        prints = {key: self._fingerprint_of(path) for key, path in given.items()}
        mark = fingerprint(name, round, config, prints)
        artefact = self.store.artefact(round, name)
        there = self._fingerprints.get(artefact) or self._read_fingerprint(artefact)
        if there is not None:
            if there != mark and round > self.shared_rounds:
                raise UserError(
                    f"{artefact} was made from other inputs than the ones now in force; move it and "
                    "the later artefacts away and run the same command, or choose another --dir"
                )
            return artefact
        self._warn_of_later_ones(round, name)
        self.store.require_space(self.config.launch.min_free_gb)
        for path in given.values():
            self.store.check_hashes(path)
        with self._reporting(round, name) as log:
            work = self.store.begin(round, name, mark)
            progress = self._progress(round, name, log)
            seed = derive_seed(self.config.seed, round, name)
            place = (name, self._log_file(round, name))
            context = StageContext(self.config, round, given, work, seed, progress, log, *place)
            self.launcher.launch(stage, context)
            self.store.commit(work, round, name, mark, config, prints, self.environment)
            self._fingerprints[artefact] = mark
            progress.done()
        return artefact

    def _warn_of_later_ones(self, round: int, name: str) -> None:
        """A stage is made again whose folder was moved away: fingerprints do not cover bytes."""
        steps = plan(self.config.rounds)
        later = (self.store.artefact(*step) for step in steps[steps.index((round, name)) + 1 :])
        if there := next((artefact for artefact in later if artefact in self._fingerprints), None):
            artefact = self.store.artefact(round, name)
            self.display.warn_once(
                f"{artefact} is made again, but {there.relative_to(self.store.root)} and what else came "
                "after it stay. On a CPU with as many threads it will have the bytes that it had; on a GPU "
                "or with a served judge it may have others: move what came after it away, too, to have that "
                "made from it"
            )

    def _log_file(self, round: int, name: str) -> Path:
        assert self.attempt is not None, "an attempt has begun"
        return self.attempt / f"{round:03d}-{name}.log"

    def _progress(self, round: int, name: str, log: logging.Logger) -> RecordedProgress:
        """Of the stage that starts now: on the screen, and in a file for other processes."""
        steps = plan(self.config.rounds)
        pending = steps[steps.index((round, name)) :]  # stages are made in this order
        left = outlook(pending, durations(self.store.events())).seconds_left
        shown = self.display.stage(round, name, left)
        return RecordedProgress(shown, self._log_file(round, name).with_name(FILE), round, name, log)

    def _slice(self, stage: Stage) -> dict[str, Any]:
        """The sections that change the stage's result, and which weights stand behind a model's name."""
        config = self.config.part(stage.config)
        for name in ("judge", "held_out_judge"):
            judge = getattr(self.config, name)
            if name in config and judge is not None:
                _identify_judge(config[name], judge, name)
        seed = config.get("data", {}).pop("seed_reasoning", None)
        if seed is not None:  # absent where there is none: it stands in no older manifest
            config["data"]["seed_reasoning"] = seed_identity(seed)
        if "generator" in config:
            model = self.config.generator.model
            config["generator"]["weights"] = model_identity(resolve_model(model, "generator.model"))
        return config

    def _fingerprint_of(self, artefact: Path) -> str:
        there = self._fingerprints.get(artefact) or self._read_fingerprint(artefact)
        assert there is not None, f"{artefact} is an input but not committed"
        return there

    def _read_fingerprint(self, artefact: Path) -> str | None:
        """Of a committed artefact. Kept, since a manifest has a line for every file."""
        manifest = read_manifest(artefact)
        if manifest is not None:
            self._fingerprints[artefact] = manifest.fingerprint
        return None if manifest is None else manifest.fingerprint

    def _disk_trouble(self, error: Exception) -> str:
        """What is wrong with the disk, if that is why a stage failed; "" if it is not.

        Libraries say it in many ways (torch.save: "unexpected pos 576 vs 534"), so the disk itself is tried.
        """
        known = isinstance(error, OSError) and error.errno in (*NO_SPACE, errno.EROFS)
        found = error if known else self.store.write_trouble()
        if found is None:
            return ""
        assert isinstance(found, OSError)
        return "no disk space left" if found.errno in NO_SPACE else f"{self.store.root} cannot be written"

    @contextlib.contextmanager
    def _reporting(self, round: int, name: str) -> Iterator[logging.Logger]:
        """Events and the log file around a stage; what it raises becomes a UserError or a StageFailed."""
        self.attempt = self.attempt or self.store.begin_attempt()
        path = self._log_file(round, name)
        began = time.monotonic()
        self.launcher.devices = None
        self.store.event("stage_started", round=round, stage=name, log=str(path.relative_to(self.store.root)))
        outcome = "stage_stopped"
        with _log_to(path, self.display) as log:
            try:
                yield log
                outcome = "stage_committed"
            except Exception as error:
                outcome = "stage_failed"
                log.debug("the stage raised", exc_info=True)  # debug: for the file, not for the screen
                if isinstance(error, UserError):
                    raise
                if trouble := self._disk_trouble(error):
                    raise UserError(
                        f"{trouble} during {name}: {error}; put it right and run the same command again"
                    ) from error
                if isinstance(error, ValueError) and name in USER_STAGES:
                    raise UserError(str(error)) from error
                reason = f"{type(error).__name__}: {error}"
                raise StageFailed(f"stage {name} of round {round} failed: {reason}", path) from error
            finally:
                seconds = time.monotonic() - began
                said: dict[str, Any] = {"round": round, "stage": name, "seconds": seconds}
                if self.launcher.devices is not None:
                    said["devices"] = self.launcher.devices
                with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                    self.store.event(outcome, **said)


def _identify_judge(section: dict[str, Any], judge: JudgeConfig, key: str) -> None:
    """Puts what decides a judge's answers in the place of addresses, paths and names.

    What is absent from a judge's config stays absent: it stands in no older manifest.
    """
    server = section.pop("server", None)
    if server is not None:
        section["server"] = without_transport(server)
    section.pop("vllm", None)
    if judge.vllm is not None and judge.vllm.deciding:
        section["vllm"] = {"arguments": judge.vllm.deciding}
    answers = section.pop("answers", None)
    if answers is not None:
        section["answers"] = hashlib.sha256(Path(answers).expanduser().read_bytes()).hexdigest()
    scorer = section.pop("scorer", None)
    if scorer is not None:
        if scorer["checklist"] is not None:
            scorer["checklist"] = checklist_digest(judge)
        section["scorer"] = scorer
    if judge.model is not None and has_weights_here(judge):
        section["weights"] = model_identity(resolve_model(judge.model, f"{key}.model"))


@contextlib.contextmanager
def _log_to(path: Path, display: Display) -> Iterator[logging.Logger]:
    """Everything that any library logs goes to the file; warnings of the stage itself also to the screen."""
    file = _LogFile(path, display)
    file.setFormatter(LineFormatter())
    screen = _ScreenHandler(display)
    root, log = logging.getLogger(), logging.getLogger("retake")
    level = root.level
    root.addHandler(file)
    log.addHandler(screen)
    root.setLevel(logging.INFO)
    log.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield log
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(file)
        log.removeHandler(screen)
        with contextlib.suppress(OSError):  # of a full disk: said before
            file.close()


class _LogFile(logging.FileHandler):
    """A log that cannot be written is one warning; a stage that needs the disk will fail by itself."""

    def __init__(self, path: Path, display: Display):
        super().__init__(path, encoding="utf-8")
        self._display = display

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._display.warn_once(f"{self.baseFilename} cannot be written: {error.strerror}")
        else:
            super().handleError(record)


class _ScreenHandler(logging.Handler):
    def __init__(self, display: Display):
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.say(f"{record.levelname.lower()}: {record.getMessage()}")
