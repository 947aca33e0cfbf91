"""Does the judge learn? The judges of finished campaigns on more known answers than a round can spare.

    python benchmarks/judge_rounds.py RUN … [--questions 400] [--ballots 2]

Questions are made from the report part's anchors, which no judge has seen, and are the same for all judges
of a run. Prints accuracy ("overall") and flip rate, each accuracy's paired change from the judge that the
campaign started with, and whether the judge gate put it in force. Brackets: bootstrap 95 % over captions.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from loop.config import CampaignConfig
from loop.progress import LineProgress
from loop.stages import StageContext
from loop.statistics import Interval, bootstrap_mean
from loop.steps.judge_gate import known_answers
from loop.steps.judging import accuracy, flip_rate, fold_all, open_judge
from reward.voting import make_asks


def examine(run: Path, num_questions: int, num_ballots: int) -> None:
    """Prints one JSON line for the first judge of a run and one for each round's candidate."""
    config = CampaignConfig.model_validate_json((run / "resolved.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        inputs = {"prepare": run / "round-000" / "prepare"}
        progress = LineProgress(run.name, Console(stderr=True))
        ctx = StageContext(
            config, 0, inputs, Path(scratch), 0, progress, logging.getLogger("retake"), "evaluate"
        )
        known = known_answers(ctx, "report", num_questions)
        questions, truth = [k.question for k in known], [k.answers for k in known]
        groups = [q.group for q in questions]
        asks = [a for q in questions for a in make_asks(q, num_ballots)]
        first: list[float] | None = None
        for folder in (None, *sorted(run.glob("round-*/train_judge"))):
            judge = open_judge(ctx, folder)
            verdicts = fold_all(questions, judge.vote(asks))
            judge.close()
            right = accuracy(verdicts, truth, "overall")
            row = {
                "run": run.name,
                "judge": folder.parent.name if folder else "first",
                "in force": folder is None
                or json.loads((folder.parent / "judge_gate" / "gate.json").read_text())["use"],
                "accuracy": _show(bootstrap_mean(right, groups, seed=0)),
                "change": _show(bootstrap_mean(np.subtract(right, first).tolist(), groups, seed=0))
                if first
                else "",
                "flip rate": round(flip_rate(verdicts, "overall"), 3),
                "questions": len(questions),
            }
            first = first or right
            print(json.dumps(row), flush=True)


def _show(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--ballots", type=int, default=2)
    options = parser.parse_args()
    for run in options.runs:
        examine(run, options.questions, options.ballots)


if __name__ == "__main__":
    main()
