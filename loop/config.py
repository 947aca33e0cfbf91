"""The whole configuration of a campaign, as data: every key that a YAML file may set. Torch-free.

The judge's and the generator's sections belong to their packages; this file composes them.
loop/config_file.py reads YAML into it and words the errors.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from generator.config import GeneratorConfig, SamplingConfig, UpdateConfig
from loop.alarm_config import AlarmsConfig
from loop.track_config import TrackerConfig
from reward.config import CertaintyConfig, JudgeConfig, KnownAnswersConfig, TrainJudgeConfig, VotingConfig

PARTS = ("train", "calibrate", "gate", "report")

Fraction = Annotated[float, Field(ge=0, le=1)]
Noise = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """One section of the file: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClipConfig(Section):
    """The one size at which real and generated clips are stored."""

    num_frames: int = Field(17, ge=1)
    height: int = Field(32, ge=16)  # pixels
    width: int = Field(32, ge=16)  # pixels
    fps: float = Field(8.0, gt=0)  # frames a second


class SplitConfig(Section):
    """How many groups of anchors each part gets, or, for all four parts, the file names themselves."""

    train: Annotated[int, Field(ge=1)] | list[str] = 24
    calibrate: Annotated[int, Field(ge=1)] | list[str] = 8
    gate: Annotated[int, Field(ge=1)] | list[str] = 8
    report: Annotated[int, Field(ge=1)] | list[str] = 8

    @model_validator(mode="after")
    def _one_way_for_all_parts(self) -> "SplitConfig":
        parts = [getattr(self, part) for part in PARTS]
        if len({isinstance(part, list) for part in parts}) > 1:
            raise ValueError("give all four parts as numbers of groups, or all four as lists of file names")
        if isinstance(parts[0], list):
            empty = [part for part, files in zip(PARTS, parts, strict=True) if not files]
            if empty:
                raise ValueError(f"part {empty[0]} lists no file; every part needs at least one")
            names = [name for files in parts for name in files]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{twice[0]} is listed more than once; a clip belongs to one part")
        return self


class PartSizes(Section):
    """A number for each part."""

    train: int = Field(ge=1)
    calibrate: int = Field(ge=1)
    gate: int = Field(ge=1)
    report: int = Field(ge=1)


class DataConfig(Section):
    anchors: str = "embedded"  # "embedded", or a folder with metadata.csv
    # embedded only: in all, or in each part; none = two of each caption
    num_anchors: Annotated[int, Field(ge=4)] | PartSizes | None = None
    # further prompts, for training alone: a text file, one a line, or "embedded": that world's captions
    prompts: str | None = None
    # clips that people compared, in pairs: a .csv or .parquet in the format of VideoGen-RewardBench
    human_pairs: str | None = None
    # for the judge's cold start: a .jsonl of compared clips with a reasoning (docs/training-the-judge.md)
    seed_reasoning: str | None = None
    # only anchors, prompts and human pairs of these categories; none = all
    categories: Annotated[list[str], Field(min_length=1)] | None = None
    clip: ClipConfig = ClipConfig()
    segment_seconds: float = Field(0.5, gt=0)
    split: SplitConfig = SplitConfig()

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A key without a file is left out: it changes no clip, so it must change no fingerprint either."""
        return {n: value for n, value in write(self).items() if n != "seed_reasoning" or value is not None}


class JudgeGateConfig(Section):
    """A new judge is used unless its held-out accuracy is below its parent's by more than `margin`."""

    num_questions: int = Field(64, ge=1)
    num_ballots: int = Field(2, ge=1)
    margin: Fraction = 0.0


class FreshConfig(Section):
    num_prompts: int = Field(16, ge=0)
    takes_per_prompt: int = Field(4, ge=2)


class GuidedConfig(Section):
    """Takes that denoise a corrupted anchor from noise level η, drawn evenly from [low, high]."""

    num_anchors: int = Field(8, ge=0)
    eta: tuple[Noise, Noise] = (0.5, 0.9)

    @model_validator(mode="after")
    def _low_before_high(self) -> "GuidedConfig":
        if self.eta[0] > self.eta[1]:
            raise ValueError(f"eta is [low, high], but {self.eta[0]} is above {self.eta[1]}")
        return self


class SampleConfig(Section):
    fresh: FreshConfig = FreshConfig()
    guided: GuidedConfig = GuidedConfig()
    sampling: SamplingConfig = SamplingConfig()
    # every take begins with the first frame of an anchor of its caption; prompts without anchors are left out
    first_frame: bool = False
    shard_size: int = Field(16, ge=1)  # takes made, and saved for a resume, at a time


class LabelConfig(Section):
    voting: VotingConfig = VotingConfig()
    max_take_pairs_per_prompt: int = Field(6, ge=0)
    against_real: int = Field(1, ge=0)  # takes of each prompt asked against a real anchor of that prompt
    segments: bool = True  # ask guided pairs segment by segment, too


class SourceConfig(Section):
    max: int | None = Field(None, ge=0)  # pairs kept of this source; none = all
    weight: float = Field(1.0, ge=0)


class SourcesConfig(Section):
    fresh: SourceConfig = SourceConfig()
    guided: SourceConfig = SourceConfig()
    real: SourceConfig = SourceConfig()
    human: SourceConfig = SourceConfig()  # data.human_pairs


class PairConfig(Section):
    min_signed_share: Fraction = 0.2  # guided pairs at or below it are dropped (DenseDPO, section 4.2)
    sources: SourcesConfig = SourcesConfig()
    # best_worst: one pair a prompt; ranked: its best num_ranked takes against its worst; all: every verdict
    strategy: Literal["best_worst", "ranked", "all"] = "best_worst"
    num_ranked: int = Field(2, ge=1)
    min_rank_gap: Fraction = 0.3  # of the mean scores, for "ranked"
    # certain: the judge must be sure that the anchor beats the take; unless_contradicted: a real clip wins,
    # save where the judge is sure of the contrary; always: it wins, and no judge is asked (RealDPO)
    real_wins: Literal["certain", "unless_contradicted", "always"] = "certain"
    # certainty: a source's weight times what the pair's certainty is worth (loop/steps/preference.py)
    weights: Literal["equal", "certainty"] = "equal"
    control: Literal["none", "random_labels"] = "none"  # random_labels: every pair's sign by coin


class EvaluateConfig(Section):
    part: Literal["report", "calibrate"] = "report"
    num_seeds: int = Field(2, ge=1)  # takes of each prompt, the same seeds every round
    num_judged: int = Field(64, ge=0)  # takes that the judge sees; the oracle sees all
    num_ballots: int = Field(2, ge=1)
    # takes that the held-out judge sees in each comparison; none = as num_judged, but 32 at most
    num_held_out_judged: int | None = Field(None, ge=0)

    @property
    def held_out_judged(self) -> int:
        given = self.num_held_out_judged
        return min(self.num_judged, 32) if given is None else given

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where it is not given, no older fingerprint knows the key."""
        return {n: v for n, v in write(self).items() if n != "num_held_out_judged" or v is not None}


class AdaptConfig(Section):
    """What the next update does otherwise after a rollback. Its pairs are new in any case."""

    learning_rate: float = Field(0.5, gt=0, le=1)  # factor for each rollback since the last promotion


class GateConfig(Section):
    """Off = every update is kept. `alpha` is the error spent over all attempts together."""

    enabled: bool = True
    num_seeds: int = Field(2, ge=1)  # takes of each prompt, fresh seeds every round
    num_ballots: int = Field(2, ge=1)
    alpha: float = Field(0.1, gt=0, lt=1)
    margin: Fraction = 0.0
    adapt: AdaptConfig | None = None  # none = every update is tried as configured (docs/gate.md)

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where nothing adapts, no older fingerprint knows the key."""
        return {n: value for n, value in write(self).items() if n != "adapt" or value is not None}


class LaunchConfig(Section):
    """Where stages run; nothing here changes a result."""

    # process: each stage in a fresh process, so that it leaves no memory behind; accelerate: likewise, and
    # the update in as many as accelerate_config says
    type: Literal["inline", "process", "accelerate"] = "inline"
    accelerate_config: str | None = None  # a file of `accelerate config`, or configs/accelerate/NAME.yaml
    min_free_gb: float = Field(0.5, ge=0)  # free disk space that every stage asks for before it starts

    @model_validator(mode="after")
    def _accelerate_has_a_config(self) -> "LaunchConfig":
        if self.type == "accelerate" and self.accelerate_config is None:
            raise ValueError(
                "type accelerate needs accelerate_config, such as configs/accelerate/multi_gpu.yaml"
            )
        return self


class CampaignConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # also the run directory: runs/NAME
    seed: Seed = 0
    rounds: int = Field(3, ge=0)
    # rounds without a promotion, one after the other, after which the campaign ends; none = never
    patience: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)  # CPU threads of every stage; none = the library's choice
    data: DataConfig = DataConfig()
    generator: GeneratorConfig
    judge: JudgeConfig
    # asked for the gate and for measures, never for labels; none = judge as it came, before any training
    held_out_judge: JudgeConfig | None = None
    known_answers: KnownAnswersConfig = KnownAnswersConfig()
    train_judge: TrainJudgeConfig = TrainJudgeConfig()
    judge_gate: JudgeGateConfig = JudgeGateConfig()
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    certainty: CertaintyConfig = CertaintyConfig()
    pair: PairConfig = PairConfig()
    update: UpdateConfig = UpdateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    alarms: AlarmsConfig | None = None  # what forbids a promotion, whatever the win rate; none = nothing
    launch: LaunchConfig = LaunchConfig()
    track: list[TrackerConfig] = Field([], exclude_if=lambda trackers: not trackers)

    @model_validator(mode="after")
    def _trackers_differ(self) -> "CampaignConfig":
        named = [tracker.destination for tracker in self.track]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"track lists {twice[0]} twice; keep one, or give them different projects")
        return self

    @property
    def measuring_judge(self) -> JudgeConfig:
        """The judge that stays as it is for the whole campaign."""
        return self.held_out_judge or self.judge

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where there is none, no older fingerprint knows the key."""
        idle = ("held_out_judge", "patience", "alarms")
        return {n: value for n, value in write(self).items() if n not in idle or value is not None}

    @model_validator(mode="after")
    def _overall_is_asked(self) -> "CampaignConfig":
        for name, judge in (("judge", self.judge), ("held_out_judge", self.measuring_judge)):
            if "overall" not in judge.dimensions:
                raise ValueError(
                    f"{name}.dimensions lacks overall, by which pairs and gates are decided; add it"
                )
        return self

    @model_validator(mode="after")
    def _early_verdicts_have_votes_enough(self) -> "CampaignConfig":
        voting, least = self.label.voting, self.certainty.min_votes
        if voting.stops_early and 2 * voting.least_ballots < least:
            raise ValueError(
                f"certainty.min_votes is {least}, but label.voting.min_ballots lets a question stop after "
                f"{2 * voting.least_ballots} votes, which would be dropped: lower certainty.min_votes, or "
                f"raise label.voting.min_ballots to {-(-least // 2)}"
            )
        return self

    @model_validator(mode="after")
    def _human_share_has_pairs(self) -> "CampaignConfig":
        if self.certainty.human_share and self.data.human_pairs is None:
            raise ValueError(
                "certainty.human_share is set, but data.human_pairs names no file: name one, or set the "
                "share to 0"
            )
        return self

    @model_validator(mode="after")
    def _what_is_trained_on_is_there(self) -> "CampaignConfig":
        settings = self.train_judge
        if settings.seed_every_round and self.data.seed_reasoning is None:
            raise ValueError(
                "train_judge.seed_every_round needs data.seed_reasoning; name the file, or turn it off"
            )
        if self.data.seed_reasoning is not None and self.judge.type not in ("transformers", "vllm"):
            raise ValueError(
                f"data.seed_reasoning trains the judge, but judge.type {self.judge.type} cannot be trained; "
                "leave it out, or use a transformers judge"
            )
        if settings.grpo_steps and self.judge.temperature == 0:
            raise ValueError(
                "train_judge.grpo_steps compares several replies to a question, but with judge.temperature 0 "
                "they are all the same; raise it, or set grpo_steps to 0"
            )
        return self

    def part(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """The named sections, or single keys of one ("pair.real_wins"), as plain JSON data.

        It is what a stage's fingerprint covers.
        """
        include: dict[str, Any] = {}
        for section, _, key in (name.partition(".") for name in keys):
            if not key:
                include[section] = True
            elif include.get(section) is not True:
                include.setdefault(section, set()).add(key)
        return self.model_dump(mode="json", include=include)


def changed_keys(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees of plain data, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            line
            for key in keys
            for line in changed_keys(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if old == new else [f"{at} (was {old!r}, now {new!r})"]
