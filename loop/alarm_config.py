"""Settings of the alarms: how much is asked for them, and what raises one. Torch-free.

The thresholds were set before any of the judges that they are to catch was run; docs/gate.md says from what.
"""

from __future__ import annotations

from pydantic import ConfigDict, Field, field_validator

from reward.config import CORRUPTIONS
from reward.section import Section

VICES = ("frozen", "saturated", "blurred")  # flaws that a judge may come to love
NAMES = (
    *(f"loves_{vice}" for vice in VICES),
    *(f"prefers_{name}" for name in CORRUPTIONS),
    "ignores_caption",
    "answers_by_position",
    "no_better_than_chance",
    "flip_rate_rose",
    "overconfidence_rose",
    "diverges_held_out_judge",
    "diverges_motion",
    "diverges_smoothness",
    "implicit_accuracy_saturated",
    "pairs_of_one_source",
)


class AlarmsConfig(Section):
    """An alarm forbids the round's promotion, unless it is in `report_only`."""

    model_config = ConfigDict(allow_inf_nan=False)

    num_probes: int = Field(24, ge=0, description="clips, or pairs of captions, a vice; 0 = no probes")
    num_ballots: int = Field(1, ge=1, description="ballots of a probe")
    ask_judge: bool = Field(
        True,
        description="ask the judge in force about the gate's clips, as many questions as the gate asks; "
        "without it no divergence is seen",
    )
    alpha: float = Field(
        0.01, gt=0, lt=0.5, description="probability of a false alarm, of each family of tests a round"
    )
    min_skill: float = Field(
        0.8,
        gt=0.5,
        lt=1,
        description="share of right answers that an honest judge is trusted to reach on the caption probes: "
        "with fewer probes than would show it, no alarm says that a judge ignores captions or guesses",
    )
    max_rise: float = Field(
        0.1, ge=0, lt=1, description="of flip rate or overconfidence from one judge in force to the next"
    )
    max_motion_fall: float = Field(0.1, ge=0, lt=1, description="as a share of the parent's motion")
    max_smoothness_fall: float = Field(0.02, ge=0, lt=1, description="of motion smoothness, at most 1")
    max_source_share: float = Field(
        0.95, gt=0, le=1, description="of the pairs that one source may have where another one had some"
    )
    report_only: tuple[str, ...] = Field((), description="names of alarms that forbid nothing")

    @field_validator("report_only")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(f"there is no alarm {unknown[0]!r}; choose from {', '.join(NAMES)}")
        return names
