"""benchmarks/calibration.py measures what it says, on verdicts and takes whose answers are known by hand."""

import json
import math

import numpy as np

from benchmarks.calibration import as_voted, measures, on_known_answers, on_takes, outcomes, target_row
from generator.clips import write_clip
from loop.config import CampaignConfig
from loop.embedded import world
from loop.steps.common import write_table
from loop.steps.judging import VERDICTS
from loop.steps.preference import PAIRS
from loop.steps.sample import TAKES
from reward.calibration import KNOWN_SEGMENT, POOLED, Calibrator
from reward.certainty import apply
from reward.voting import DimensionVerdict, Verdict


def verdict(score, segment=None, group="g", num_votes=2):
    mode = "first" if score > 0.5 else "second" if score < 0.5 else "tie"
    found = DimensionVerdict(score, 1 - score, 0.0, score, mode, 0.0, 0.0)
    return Verdict("q", "known", segment, group, {"overall": found}, num_votes, 0)


def truth(*answers):
    return [{"overall": a} for a in answers]


def test_outcomes_are_of_the_preferred_side_and_half_without_one():
    verdicts = [as_voted(verdict(s)) for s in (1.0, 0.25, 0.5, 0.75, 0.0)]
    certainty, right = outcomes(verdicts, truth("first", "first", "first", "tie", "second"), "overall")
    assert certainty.tolist() == [1.0, 0.75, 0.5, 0.75, 1.0]
    assert right.tolist() == [1.0, 0.0, 0.5, 0.5, 1.0]
    # a calibrator of slope 0 has no side to prefer, whatever the votes
    flat = {"known": Calibrator("known", {POOLED: 0.0}, {})}
    certainty, right = outcomes([apply(verdict(1.0), flat)], truth("second"), "overall")
    assert (certainty.tolist(), right.tolist()) == ([0.5], [0.5])


def test_measures_are_those_of_the_hand():
    row = measures(np.array([0.95, 0.95, 0.65, 0.65]), np.array([1.0, 0.0, 1.0, 0.5]), list("aabb"))
    # bins of .95 and .65: |.5 − .95| and |.75 − .65|
    assert row["num"] == 4 and row["ECE"].startswith("0.275 [")
    # (.0025 + .9025 + .1225 + .0225) / .75 above 1
    assert row["Brier skill"].startswith("-0.400 [") and row["mean certainty"] == 0.8
    assert row["right"].startswith("0.625 [0.500, 0.750]")  # two anchors, .5 and .75
    # 60 % are 2.4 rows: (1 + 0.4 · .75) / 2.4
    assert row["right among the most certain"] == {
        "20%": 0.5, "40%": 0.5, "60%": 0.542, "80%": 0.594, "100%": 0.625
    }  # fmt: skip


def test_a_target_keeps_what_promises_it_and_says_what_was_reached():
    slope = {"known": Calibrator("known", {POOLED: 1.0}, {})}  # p = (2 · score + ½) / 3: 5/6, 2/3
    verdicts = [apply(verdict(s), slope) for s in (1.0, 1.0, 0.75, 0.5)]
    answers = truth("first", "second", "first", "tie")
    assert target_row(verdicts, answers, list("abcd"), 0.8, "overall")["kept"] == 0.5
    row = target_row(verdicts, answers, list("abcd"), 0.75, "overall")  # (5/6 + 5/6 + 2/3) / 3 = .78
    assert (row["kept"], row["promised"]) == (0.75, 0.778) and row["reached"].startswith("0.667 [")
    nothing = target_row(verdicts, answers, list("abcd"), 0.9, "overall")
    assert nothing == {"kept": 0.0, "promised": None, "reached": "–"}


def test_a_row_for_every_kind_and_certainty():
    verdicts = [verdict(1.0), verdict(0.0, segment=1), verdict(1.0)]
    ways = {
        "as voted": as_voted,
        "own": lambda v: apply(v, {"known": Calibrator("known", {POOLED: 1.0}, {})}),
    }
    rows = list(on_known_answers(verdicts, truth("first", "second", "second"), ways, [0.8], "overall"))
    assert [(r["kind"], r["certainty"], r["num"]) for r in rows] == [
        ("all", "as voted", 3), ("all", "own", 3), ("known", "as voted", 2), ("known", "own", 2),
        (KNOWN_SEGMENT, "as voted", 1), (KNOWN_SEGMENT, "own", 1),
    ]  # fmt: skip
    assert ["target 0.8" in r for r in rows] == [False, True] * 3  # votes are no probability to promise


def test_takes_are_measured_by_the_oracle(tmp_path):
    """Good takes as their caption says, bad ones played backwards; the judge is right once and wrong once."""
    folder = tmp_path / "round-001"
    for name in ("sample/clips", "label", "pair"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "round-000" / "prepare").mkdir(parents=True)
    facts = {"frames_per_segment": 4, "latent_segments": [0, 0, 1, 2, 3]}
    (tmp_path / "round-000" / "prepare" / "clip.json").write_text(json.dumps(facts))
    rng, takes, rows, pairs = np.random.default_rng(0), [], [], []
    for number, combination in enumerate(list(world.combinations())[:2]):
        frames = world.render(world.draw_scene(*combination, rng))
        caption, prompt = world.caption_of(*combination), f"p{number}"
        for name, pixels in (("good", frames), ("bad", frames[::-1])):
            file = f"clips/{name}{number}.mp4"
            write_clip(folder / "sample" / file, pixels, world.FPS)
            row = dict.fromkeys(TAKES.names) | {"take_id": f"{name}{number}", "kind": "fresh", "file": file}
            takes.append(row | {"prompt_id": prompt, "prompt": caption})
        score, margin = (1.0, 1.0) if number == 0 else (0.25, 0.5)
        mode = "first" if score > 0.5 else "second"
        row = {"question_id": f"q{number}", "kind": "take_take", "dimension": "overall", "mode": mode}
        row |= {"first_id": f"good{number}", "second_id": f"bad{number}", "prompt": caption, "score": score}
        row |= {"p_first": score, "p_second": 1 - score, "p_tie": 0.0, "entropy": 0.0, "flip_rate": 0.0}
        rows.append(row | {"certainty": margin, "num_votes": 2, "num_abstentions": 0})
    pairs = [dict.fromkeys(PAIRS.names) | {"pair_id": "fresh-good0-over-bad0"}]
    write_table(folder / "sample" / "takes.parquet", takes, TAKES)
    write_table(folder / "label" / "verdicts.parquet", rows, VERDICTS)
    write_table(folder / "pair" / "pairs.parquet", pairs, PAIRS)
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "rounds": 1,
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {"model": "embedded:tiny-judge"},
            "certainty": {"min_margin": 0.75},
            "pair": {"strategy": "all"},
        }
    )
    known = {"known": Calibrator("known", {POOLED: 1.0}, {})}
    filtered, chosen, voted, transferred = on_takes(tmp_path, config, known, [0.75])
    assert filtered["reasons"] == {"kept": 1, "uncertain": 1}
    for row in (filtered, chosen):
        assert row["kept"] == "1.000 [1.000, 1.000], 1 pairs" and row["dropped"].startswith("0.000 [")
    # bins of 1 (right) and .75 (wrong); of known answers 5/6 and 2/3
    assert voted["ECE"].startswith("0.375 [") and voted["num"] == 2
    assert transferred["ECE"].startswith(f"{(1 / 6 + 2 / 3) / 2:.3f} [")
    assert transferred["right"].startswith("0.500 [")
    assert transferred["target 0.75"]["promised"] == 0.75 and "target 0.75" not in voted
    few = config.model_copy(update={"certainty": config.certainty.model_copy(update={"min_labels": 1})})
    *_, slopes, curves = on_takes(tmp_path, few, known, [])
    # each prompt is judged by the other: the wrong one's label says ½ about the right one, which counts half
    assert slopes["certainty"] == "of takes, slopes" and slopes["right"].startswith("0.250 [")
    # the right one's curve is 2/3 at its own ln 5, linear from ½ to there; the wrong one's score is at ln 2
    about_the_wrong_one = 0.5 + math.log(2) / math.log(5) / 6
    assert curves["mean certainty"] == round((0.5 + about_the_wrong_one) / 2, 3)
