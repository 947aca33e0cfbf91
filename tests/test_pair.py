"""From verdicts to preferences: signs, filters, counted drops and the random-label control."""

from collections import Counter

import pytest

from loop.config import CampaignConfig
from loop.held_out import HeldOut
from loop.steps.given_pairs import Given
from loop.steps.pair import make_preferences
from loop.steps.preference import worth_of

LATENT_SEGMENTS = [0, 0, 1, 2, 3]


def config(against_real: int = 1, **pair) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {"model": "embedded:tiny-judge"},
            "certainty": {"min_margin": 0.5, "min_votes": 2},
            "label": {"against_real": against_real},
            "pair": pair,
        }
    )


def take(name, prompt="p0", kind="fresh", anchor=None) -> dict:
    return {
        "take_id": name,
        "kind": kind,
        "prompt_id": prompt,
        "prompt": f"text of {prompt}",
        "anchor_id": anchor,
    }


def verdict(
    first, second, score, kind="take_take", segment=None, certainty=None, votes=4, calibrated=None
) -> dict:
    mode = "first" if score > 0.5 else "second" if score < 0.5 else "tie"
    return {
        "question_id": f"q-{first}-{second}-{segment}",
        "kind": kind,
        "segment": segment,
        "first_id": first,
        "second_id": second,
        "dimension": "overall",
        "p_first": score,
        "p_second": 1 - score,
        "p_tie": 0.0,
        "score": score,
        "mode": mode,
        "entropy": 0.0,
        "flip_rate": 0.0,
        "certainty": abs(2 * score - 1) if certainty is None else certainty,
        "calibrated_for": calibrated,
        "num_votes": votes,
        "num_abstentions": 0,
    }


def make(verdicts, takes, given=None, **settings):
    return make_preferences(
        verdicts, {t["take_id"]: t for t in takes}, LATENT_SEGMENTS, config(**settings), 1, given
    )


def anchor(name, caption, part="train", sha256="") -> dict:
    return {"anchor_id": name, "caption": caption, "part": part, "sha256": sha256 or name}


def human(name, label="A", prompt="a dog runs", sha256=("", "")) -> dict:
    return {
        "pair_id": name, "prompt_id": f"prompt of {prompt}", "prompt": prompt, "label": label,
        "clip_A": f"{name}A", "clip_B": f"{name}B",
        "sha256_A": sha256[0] or f"{name}A", "sha256_B": sha256[1] or f"{name}B",
    }  # fmt: skip


def test_fresh_best_against_worst_and_counts():
    takes = [take(n) for n in "abc"]
    verdicts = [verdict("a", "b", 1.0), verdict("b", "c", 0.9), verdict("c", "a", 0.0)]
    [found], drops = make(verdicts, takes, strategy="best_worst")
    assert (found.winner_id, found.loser_id, found.signs) == ("a", "c", [1] * 5)
    assert drops == Counter({("fresh", "not_best_against_worst"): 2})
    everything, drops = make(verdicts, takes, strategy="all")
    assert {(p.winner_id, p.loser_id) for p in everything} == {("a", "b"), ("b", "c"), ("a", "c")}
    assert not drops


def test_ranked_pairs_use_every_verdict_and_drop_contradictions():
    takes = [take(n) for n in "abcd"]
    verdicts = [
        verdict("a", "b", 0.5),
        verdict("a", "c", 1.0),
        verdict("a", "d", 1.0),
        verdict("b", "c", 1.0),
        verdict("d", "b", 1.0),  # b ranks above d, but lost to it
        verdict("c", "d", 0.5),
    ]
    found, drops = make(verdicts, takes, strategy="ranked", num_ranked=2, min_rank_gap=0.3)
    # mean scores: a 5/6, b 1/2, d 1/2, c 1/6; b comes before d by name
    assert [(p.winner_id, p.loser_id) for p in found] == [("a", "c"), ("a", "d"), ("b", "c")]
    assert found[0].certainty == pytest.approx(4 / 6) and found[1].certainty == pytest.approx(2 / 6)
    assert drops == Counter({("fresh", "close_ranks"): 1})
    found, drops = make(verdicts, takes, strategy="ranked", num_ranked=2, min_rank_gap=0)
    assert ("b", "d") not in [(p.winner_id, p.loser_id) for p in found] and sum(drops.values()) == 1


def test_uncertain_verdicts_are_dropped_by_reason():
    takes = [take(n) for n in "abcdefgh"]
    verdicts = [
        verdict("a", "b", 0.7),  # margin 0.4 < 0.5
        verdict("c", "d", 0.5),
        verdict("e", "f", 1.0, votes=1),
        verdict("g", "h", 1.0, certainty=0.6, calibrated="take_take"),  # a calibrated probability below 0.7
    ]
    found, drops = make(verdicts, takes, strategy="all")
    assert found == []
    assert sum(drops.values()) == 4 and drops["fresh", "uncertain"] == 2
    assert drops["fresh", "tie"] == 1 and drops["fresh", "too_few_votes"] == 1


def test_every_drop_names_its_question_or_its_clips():
    takes = [take(n) for n in "abcd"]
    verdicts = [
        verdict("a", "b", 1.0),
        verdict("b", "c", 0.9),
        verdict("c", "a", 0.0),
        verdict("d", "d2", 0.5),
    ]
    takes[3]["prompt_id"] = "another"
    found, drops = make(verdicts, takes, strategy="best_worst", sources={"fresh": {"max": 0}})
    assert found == []
    rows = [tuple(row.values()) for row in drops.rows]
    assert rows == [
        ("fresh", "not_best_against_worst", verdicts[0]["question_id"], "a", "b"),
        ("fresh", "not_best_against_worst", verdicts[1]["question_id"], "b", "c"),
        ("fresh", "tie", verdicts[3]["question_id"], "d", "d2"),
        ("fresh", "over_the_source_limit", None, "a", "c"),
    ]
    assert Counter((row["source"], row["reason"]) for row in drops.rows) == drops


def test_guided_signs_follow_their_segments_in_either_order():
    takes = [take("g0", kind="guided", anchor="x"), take("g1", kind="guided", anchor="x")]
    verdicts = [
        verdict("g0", "g1", 1.0, "segment", 0),
        verdict("g1", "g0", 0.0, "segment", 1),  # shown the other way round: g0 wins again
        verdict("g1", "g0", 1.0, "segment", 2),
        verdict("g0", "g1", 0.5, "segment", 3),
    ]
    [found], drops = make(verdicts, takes)
    assert (found.winner_id, found.signs) == ("g0", [1, 1, 1, -1, 0])
    assert drops == Counter({("guided", "segment_tie"): 1})


def test_guided_pairs_need_signed_frames():
    takes = [take("g0", kind="guided", anchor="x"), take("g1", kind="guided", anchor="x")]
    tied = [verdict("g0", "g1", 0.5, "segment", s) for s in range(3)] + [
        verdict("g0", "g1", 1.0, "segment", 3)
    ]
    found, drops = make(tied, takes)  # one latent frame of five is not more than a fifth
    assert found == [] and drops["guided", "too_few_signed_segments"] == 1


def test_the_real_clip_wins_unless_the_judge_objects():
    takes = [take("a"), take("b")]
    verdicts = [verdict("a", "anchor", 0.0, "take_real"), verdict("anchor", "b", 0.0, "take_real")]
    [found], drops = make(verdicts, takes)
    assert (found.winner_id, found.loser_id, found.source) == ("anchor", "a", "real")
    assert drops == Counter({("real", "judge_prefers_the_take"): 1})


def test_a_real_clip_that_the_judge_is_not_sure_of_wins_only_if_asked_so():
    takes = [take("a"), take("b"), take("c")]
    verdicts = [
        verdict("a", "anchor", 0.5, "take_real"),  # a tie
        verdict("b", "anchor", 0.6, "take_real"),  # for the take, not surely
        verdict("c", "anchor", 1.0, "take_real"),  # surely for the take
    ]
    assert make(verdicts, takes)[0] == []
    found, drops = make(verdicts, takes, real_wins="unless_contradicted")
    assert {(p.winner_id, p.loser_id) for p in found} == {("anchor", "a"), ("anchor", "b")}
    assert drops == Counter({("real", "judge_prefers_the_take"): 1})


def test_source_limits_keep_the_most_certain():
    takes = [take(n) for n in "abcd"]
    verdicts = [verdict("a", "b", 0.8), verdict("c", "d", 1.0)]
    [found], drops = make(verdicts, takes, strategy="all", sources={"fresh": {"max": 1, "weight": 0.25}})
    assert found.winner_id == "c" and found.weight == 0.25
    assert drops == Counter({("fresh", "over_the_source_limit"): 1})


def test_random_labels_flip_about_half_and_stay_seeded():
    takes = [take(f"t{i}") for i in range(200)]
    verdicts = [verdict(f"t{i}", f"t{i + 1}", 1.0) for i in range(0, 200, 2)]
    honest, _ = make(verdicts, takes, strategy="all")
    control, _ = make(verdicts, takes, strategy="all", control="random_labels")
    again, _ = make(verdicts, takes, strategy="all", control="random_labels")
    flipped = sum(h.winner_id != c.winner_id for h, c in zip(honest, control, strict=True))
    assert 30 < flipped < 70
    assert control == again
    assert {frozenset((p.winner_id, p.loser_id)) for p in control} == {
        frozenset((p.winner_id, p.loser_id)) for p in honest
    }


def test_always_every_take_of_a_prompt_loses_against_one_anchor():
    takes = [*(take(f"a{i}", "pa") for i in range(4)), take("b0", "pb"), take("c0", "pc")]
    takes += [take("g0", "pa", kind="guided", anchor="x1"), take("g1", "pa", kind="guided", anchor="x1")]
    anchors = [anchor(f"x{i}", "text of pa") for i in range(5)]
    found, drops = make([], takes, Given(3, anchors), real_wins="always", against_real=3)
    assert [p.loser_id for p in found] == ["a0", "a1", "a2"] and not drops
    assert len({p.winner_id for p in found}) == 1 and found[0].winner_id in {f"x{i}" for i in range(5)}
    assert {(p.source, p.weight, p.certainty, p.question_id) for p in found} == {("real", 1.0, 1.0, None)}
    rounds = [make([], takes, Given(k, anchors), real_wins="always")[0][0].winner_id for k in range(1, 6)]
    assert sorted(rounds) == [f"x{i}" for i in range(5)]  # each round has another, until all have won
    assert make([], takes, Given(3, anchors), real_wins="certain", against_real=3)[0] == []


def test_always_the_winner_is_the_anchor_that_a_take_began_with():
    takes = [take(f"a{i}", "pa", anchor="x2") for i in range(2)]
    anchors = [anchor(f"x{i}", "text of pa") for i in range(5)]
    for k in range(1, 6):
        found, _ = make([], takes, Given(k, anchors), real_wins="always", against_real=2)
        assert {p.winner_id for p in found} == {"x2"}


@pytest.mark.parametrize(
    ("certainty", "calibrated", "supports", "worth"),
    [
        (0.5, True, 1, 0.0),  # a coin
        (0.75, True, 1, 0.5),
        (1.0, True, 1, 1.0),
        (0.75, False, 1, 0.75),  # a margin
        (0.9, True, -1, 0.0),  # for the other clip
        (0.0, False, 0, 0.0),
    ],
)
def test_what_a_certainty_is_worth(certainty, calibrated, supports, worth):
    assert worth_of(certainty, calibrated, supports) == pytest.approx(worth)


def test_weights_by_certainty_of_every_source():
    takes = [take(n) for n in "abcdef"]
    takes += [take("g0", kind="guided", anchor="x"), take("g1", kind="guided", anchor="x")]
    verdicts = [
        verdict("a", "b", 0.9),  # margin 0.8
        verdict("c", "d", 0.9, certainty=0.85, calibrated="take_take"),  # 2 · 0.85 − 1 = 0.7
        verdict("g0", "g1", 1.0, "segment", 0),
        verdict("g0", "g1", 0.8, "segment", 1),  # (1 + 0.6) / 2 = 0.8, times the source's ½
        verdict("e", "anchor", 0.1, "take_real"),  # 0.8
        verdict("f", "anchor", 0.5, "take_real"),  # a tie that the rule decides, but it is worth nothing
    ]
    settings = {"strategy": "all", "real_wins": "unless_contradicted", "sources": {"guided": {"weight": 0.5}}}
    given = Given(1, human=[human("h")])
    equal, drops = make(verdicts, takes, given, **settings)
    assert [p.weight for p in equal] == [1, 1, 0.5, 1, 1, 1] and not drops
    found, drops = make(verdicts, takes, given, weights="certainty", **settings)
    weights = {p.winner_id + p.loser_id: p.weight for p in found}
    assert weights == pytest.approx({"ab": 0.8, "cd": 0.7, "g0g1": 0.4, "anchore": 0.8, "hAhB": 1.0})
    assert drops == Counter({("real", "worth_nothing"): 1})
    assert [p.certainty for p in found] == [p.certainty for p in equal if p.loser_id != "f"]


def test_a_rank_gap_is_worth_itself():
    takes = [take(n) for n in "ab"]
    verdicts = [verdict("a", "b", 0.9, certainty=0.95, calibrated="take_take")]
    [found], _ = make(verdicts, takes, strategy="ranked", num_ranked=1, weights="certainty")
    assert found.weight == pytest.approx(0.8)  # 0.9 − 0.1, whatever the verdict's own certainty


def test_people_decide_with_certainty_and_ties_and_leaks_are_counted():
    rows = [
        human("one"),
        human("two", "B"),
        human("tie", "same"),
        human("held", prompt="A  Cat sits"),  # as the report part has it, but for case and spaces
        human("same file", prompt="other words", sha256=("", "held clip")),
    ]
    prompts = [{"text": "a cat sits", "part": "report"}, {"text": "a dog runs", "part": "train"}]
    anchors = [anchor("x", "a cat sits", "report", sha256="held clip")]
    found, drops = make([], [], Given(1, (), HeldOut.of(anchors, prompts), rows))
    assert [(p.source, p.winner_id, p.loser_id) for p in found] == [
        ("human", "oneA", "oneB"),
        ("human", "twoB", "twoA"),
    ]
    assert all((p.certainty, p.weight, p.signs) == (1.0, 1.0, [1] * 5) for p in found)
    assert drops == Counter(
        {("human", "tie"): 1, ("human", "leaks_a_held_out_prompt"): 1, ("human", "leaks_a_held_out_clip"): 1}
    )


def test_a_limit_on_peoples_pairs_gives_every_round_its_own():
    rows = [human(f"h{i}") for i in range(6)]
    seen = []
    for k in (1, 2, 3):
        found, drops = make([], [], Given(k, human=rows), sources={"human": {"max": 2}})
        assert len(found) == 2 and drops == Counter({("human", "over_the_source_limit"): 4})
        seen += [p.winner_id for p in found]
    assert sorted(seen) == [f"h{i}A" for i in range(6)]


def test_random_labels_flip_peoples_pairs_too():
    rows = [human(f"h{i}") for i in range(100)]
    found, _ = make([], [], Given(1, human=rows), control="random_labels")
    assert 20 < sum(p.winner_id.endswith("B") for p in found) < 80


@pytest.mark.parametrize("key", ["min_certainty", "stategy"])
def test_unknown_keys_are_errors(key):
    with pytest.raises(ValueError):
        config(**{key: 1})


def test_a_target_precision_is_that_of_the_pairs_that_compete():
    """Best against worst of two prompts: certainties .95 and .84 reach .89 together, the .99 do not count."""
    takes = [take(n, f"p{n[1]}") for n in ("a0", "b0", "c0", "a1", "b1")]
    verdicts = [
        verdict("a0", "b0", 0.9, certainty=0.99, calibrated="take_take"),
        verdict("a0", "c0", 1.0, certainty=0.95, calibrated="take_take"),
        verdict("b0", "c0", 0.6, certainty=0.99, calibrated="take_take"),
        verdict("a1", "b1", 0.8, certainty=0.84, calibrated="take_take"),
        verdict("a0", "anchor", 0.0, "take_real", certainty=0.6),  # nothing calibrates it: its margin counts
    ]
    by_id = {t["take_id"]: t for t in takes}
    settings = config(strategy="best_worst")
    for target, kept in ((0.89, {"a0c0", "a1b1", "anchora0"}), (0.9, {"a0c0", "anchora0"})):
        limits = settings.certainty.model_copy(update={"target_precision": target})
        changed = settings.model_copy(update={"certainty": limits})
        found, drops = make_preferences(verdicts, by_id, LATENT_SEGMENTS, changed, 1)
        assert {p.winner_id + p.loser_id for p in found} == kept
        assert drops["fresh", "below_target_precision"] == (target == 0.9)
