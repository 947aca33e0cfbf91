"""A judge's training that is killed in any of its phases ends in the bytes of one that never was."""

from itertools import pairwise

import numpy as np
import pytest

from reward.config import LoraConfig, TrainJudgeConfig
from reward.known_answers import make_known_answers
from reward.preferences import PreferenceRow, known_answer_rows
from reward.train import train_judge
from reward.trainer import _WHOLE
from tests.test_embedded_judge import FOLDER, known_sources
from tests.test_reward_grpo import JUDGE


class Killed(BaseException):
    pass


def rows():
    flaws = ("jitter", "splice", "blur")
    sources = known_sources("calibrate", np.random.default_rng(7))
    known = make_known_answers(sources, 4, seed=11, corruptions=flaws, num_shown=4)
    supervised = known_answer_rows(known)
    preferred = [
        PreferenceRow(row.ask, row.reply, other.reply, 1.0, "own")
        for row, other in pairwise(supervised)
        if row.reply != other.reply
    ]
    return supervised, preferred, known


@pytest.mark.parametrize(
    ("lora", "stops", "reported"),
    [
        # a phase that was done reports its last step; one that was not goes on from its checkpoint
        (None, (2, 5, 7), [3, 5, 6, 7]),
        (LoraConfig(rank=2, alpha=4), (5,), [3, 4, 5, 6, 7]),
    ],
)
def test_killed_in_every_phase_it_ends_in_the_same_bytes(tmp_path, lora, stops, reported):
    """Four rows in batches of two: phases go round their rows, so the order after a kill matters."""
    supervised, preferred, known = rows()
    config = TrainJudgeConfig(
        lora=lora,
        num_steps=3,
        batch_size=2,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_steps=1,
        weight_decay=0.1,
        preference_steps=2,
        preference_batch_size=2,
        preference_learning_rate=1e-3,
        min_pce=0.0,
        grpo_steps=2,
        grpo_batch_size=8,
        grpo_replies=4,
        grpo_learning_rate=1e-3,
        log_every=1,
        checkpoint_every=1,
    )
    config = config.model_copy(update={"micro_batch_size": None}) if lora else config

    def train(name, stop_at=None, checkpoints=None):
        logs, seen = [], []

        def progress(step, total):
            seen.append(step)
            assert total == 7
            if step == stop_at:
                raise Killed

        report = train_judge(
            FOLDER, supervised, preferred, config, JUDGE, tmp_path / name, 3, progress, logs.append, known,
            checkpoints,
        )  # fmt: skip
        return report, logs, seen

    report, logs, _ = train("whole")
    checkpoints = tmp_path / "checkpoints"
    for stop_at in stops:
        with pytest.raises(Killed):
            train("killed", stop_at, checkpoints)
    newest = checkpoints / "sft" / "checkpoint-9"  # half of one, as a kill while it is written leaves it
    newest.mkdir()
    again, after, seen = train("killed", None, checkpoints)
    assert seen == reported
    assert again == report and after == logs
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name
    kept = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob(f"*/*/{_WHOLE}"))
    assert kept == [
        f"{name}/checkpoint-{step}/{_WHOLE}" for name, step in (("grpo", 2), ("sft", 3), ("srpo", 2))
    ]


def test_a_training_that_is_stopped_is_saved_where_its_log_stands(tmp_path):
    """By default, too, where a kill begins it again: on to the next log row, or to the end of the phase."""
    supervised, preferred, _ = rows()
    config = TrainJudgeConfig(
        num_steps=5,
        batch_size=2,
        learning_rate=1e-3,
        warmup_steps=1,
        preference_steps=2,
        preference_batch_size=2,
        preference_learning_rate=1e-3,
        min_pce=0.0,
        log_every=2,
    )

    def train(name, stop_at=99, checkpoints=None):
        logs, seen = [], []
        report = train_judge(
            FOLDER, supervised, preferred, config, JUDGE, tmp_path / name, 3,
            lambda step, _: seen.append(step), logs.append, (), checkpoints,
            lambda: bool(seen) and seen[-1] >= stop_at,
        )  # fmt: skip
        return report, logs, seen

    report, logs, _ = train("whole")
    checkpoints = tmp_path / "checkpoints"
    for stop_at, said in ((1, "step 2 of sft"), (5, "step 5 of sft"), (6, "step 2 of srpo")):
        with pytest.raises(InterruptedError, match=f"stopped after {said}, which is saved"):
            train("stopped", stop_at, checkpoints)
    again, after, seen = train("stopped", 99, checkpoints)
    assert seen == [5, 7] and again == report and after == logs
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "stopped" / file.name).read_bytes(), file.name


def test_checkpoints_stand_where_the_log_does():
    with pytest.raises(ValueError, match=r"checkpoint_every must be a multiple of log_every \(10\)"):
        TrainJudgeConfig(checkpoint_every=5)
    assert "checkpoint_every" not in TrainJudgeConfig().model_dump()
    assert TrainJudgeConfig(checkpoint_every=20).model_dump()["checkpoint_every"] == 20
