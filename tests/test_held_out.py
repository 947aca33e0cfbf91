"""Nothing of a held-out part reaches training: there is one door to it, and poison behind it changes nothing.

Training stages run twice on the same inputs, once beside an artefact of prepare whose held-out clips,
captions and prompts are poison. Their artefacts must not differ by a byte; then, round by round, no later
one can.
"""

from __future__ import annotations

import ast
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from generator.clips import write_clip
from loop import held_out
from loop.config import PARTS
from loop.config_file import load_config
from loop.embedded import oracle
from loop.held_out import HeldOut, HeldOutRead
from loop.launchers import InlineLauncher
from loop.progress import Display
from loop.stages import STAGES, StageContext
from loop.steps.common import write_table
from loop.steps.prepare import ANCHORS, PROMPTS
from loop.store import SCRATCH
from tests.test_isolation import ROOT, reachable
from tests.test_kill import CONFIG

TRAINING = ("train_judge", "sample", "label", "pair", "update")
SMALLER = (
    "data.num_anchors={train: 4, calibrate: 1, gate: 1, report: 1}",
    "known_answers.num_train=4",
    "known_answers.num_calibrate=6",
    "certainty.min_labels=4",
    "judge_gate.num_questions=4",
    "label.voting.num_ballots=2",
    "sample.sampling.num_steps=2",
    "sample.fresh.num_prompts=2",
    "train_judge.num_steps=2",
    "train_judge.preference_steps=1",
    "update.num_steps=3",
)


class Campaign:
    """Stages run one by one, each into a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tiny.yaml").write_text(CONFIG)
        self.config = load_config(root / "tiny.yaml", SMALLER).config

    def run(self, name: str, round: int, folder: str, **inputs: Path) -> Path:
        out = self.root / folder
        out.mkdir()
        progress, log = Display(2).stage(round, name), logging.getLogger("retake.test")
        ctx = StageContext(self.config, round, inputs, out, 7 + round, progress, log, name)
        InlineLauncher(self.config).launch(STAGES[name], ctx)
        return out


def content(artefact: Path) -> dict[str, bytes]:
    files = [p for p in artefact.rglob("*") if p.is_file() and SCRATCH not in p.relative_to(artefact).parts]
    return {str(p.relative_to(artefact)): p.read_bytes() for p in files}


def poison(prepared: Path, folder: Path, parts: tuple[str, ...]) -> Path:
    """prepare's artefact with noise for the clips of `parts`, whose captions and prompts are a training one.

    So a stage that reads all rows finds them where it looks for its own.
    """
    shutil.copytree(prepared, folder)
    rng = np.random.default_rng(0)
    rows = {n: pq.read_table(prepared / f"{n}.parquet").to_pylist() for n in ("anchors", "prompts")}
    caption = next(row["caption"] for row in rows["anchors"] if row["part"] == "train")
    for row in rows["anchors"]:
        if row["part"] in parts:
            write_clip(folder / row["file"], rng.integers(0, 256, (17, 32, 32, 3), dtype=np.uint8), 8)
            row |= {"caption": caption, "source": "poison", "sha256": "poison"}
    for row in rows["prompts"]:
        if row["part"] in parts:
            row |= {"text": caption, "prompt_id": f"poison-{row['part']}"}
    write_table(folder / "anchors.parquet", rows["anchors"], ANCHORS)
    write_table(folder / "prompts.parquet", rows["prompts"], PROMPTS)
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("poison"))


@pytest.fixture(scope="module")
def clean(campaign) -> dict[str, tuple[str, int, dict[str, Path], Path]]:
    """A round and the start of the next: stage, round, inputs and artefact of each."""
    done: dict[str, tuple[str, int, dict[str, Path], Path]] = {}

    def run(name: str, round: int, **inputs: Path) -> Path:
        key = f"{name}-{round}"
        out = campaign.run(name, round, key, **inputs)
        done[key] = (name, round, inputs, out)
        return out

    prepared = run("prepare", 0)
    judge = run("train_judge", 1, prepare=prepared)
    judged = run("judge_gate", 1, prepare=prepared, train_judge=judge)
    sample = run("sample", 1, prepare=prepared)
    label = run("label", 1, prepare=prepared, sample=sample, judge_gate=judged, judge=judge)
    pair = run("pair", 1, prepare=prepared, sample=sample, label=label)
    update = run("update", 1, prepare=prepared, sample=sample, pair=pair)
    run("train_judge", 2, prepare=prepared, judge_parent=judge, label=label, sample=sample)
    run("sample", 2, prepare=prepared, generator=update)
    return done


@pytest.fixture(scope="module")
def calibrated_by_poison(campaign, clean) -> Path:
    """judge_gate's artefact, its calibrators fitted on poison and all else in it removed."""
    _, _, inputs, _ = clean["judge_gate-1"]
    prepared = poison(inputs["prepare"], campaign.root / "prepare-calibrate", ("calibrate",))
    return campaign.run("judge_gate", 1, "judge_gate-calibrate", **inputs | {"prepare": prepared})


def test_training_is_the_same_byte_for_byte_whatever_is_held_out(
    campaign, clean, calibrated_by_poison, monkeypatch
):
    monkeypatch.setattr(oracle, "score", None)  # a call would raise
    poisoned = poison(clean["prepare-0"][3], campaign.root / "prepare-all", PARTS[1:])
    calibrators = campaign.root / "calibrators"
    calibrators.mkdir()
    shutil.copy(calibrated_by_poison / "calibrators.json", calibrators)
    differing = []
    for key, (name, round, inputs, artefact) in clean.items():
        if name in TRAINING:
            given = inputs | {"prepare": poisoned}
            if "judge_gate" in given:
                given["judge_gate"] = calibrators
            again = content(campaign.run(name, round, f"{key}-poisoned", **given))
            before = content(artefact)
            assert before and before.keys() == again.keys()
            differing += [f"{key}/{file}" for file in before if before[file] != again[file]]
    assert differing == []
    # the comparison means something: there is training of every kind in it
    assert {"label-1", "pair-1", "update-1", "train_judge-2"} <= clean.keys()
    assert pq.read_table(clean["pair-1"][3] / "pairs.parquet").num_rows > 0
    assert '"phase": "srpo"' in (clean["train_judge-2"][3] / "log.jsonl").read_text()


def test_a_stage_that_reads_all_rows_is_found(campaign, clean, monkeypatch):
    """Else the test above might hold because poison is harmless."""
    monkeypatch.setattr(held_out, "_rows", lambda ctx, table, part: held_out._table(ctx, table))
    name, round, inputs, artefact = clean["sample-1"]
    poisoned = poison(inputs["prepare"], campaign.root / "prepare-sabotage", PARTS[1:])
    again = campaign.run(name, round, "sample-sabotage", **inputs | {"prepare": poisoned})
    assert content(again) != content(artefact)


def test_the_calibrate_part_reaches_calibrators_alone_and_the_gate_part_the_decision_alone(
    campaign, clean, calibrated_by_poison
):
    name, round, inputs, artefact = clean["judge_gate-1"]
    honest, by_poison = content(artefact), content(calibrated_by_poison)
    assert [f for f in honest if honest[f] != by_poison[f]] == ["calibrators.json"]
    prepared = poison(inputs["prepare"], campaign.root / "prepare-gate", ("gate", "report"))
    judged = content(campaign.run(name, round, "judge_gate-gate", **inputs | {"prepare": prepared}))
    assert sorted(f for f in honest if honest[f] != judged[f]) == ["gate.json", "verdicts.parquet"]


def test_no_training_stage_gets_what_evaluate_or_the_gate_wrote():
    from_training = {"prepare", "judge_parent", "judge", "generator", "sample", "label", "pair", "judge_gate"}
    for name in TRAINING:
        assert {given.removesuffix("?") for given in STAGES[name].inputs} <= from_training


def tables(folder: Path) -> Path:
    anchors = [
        dict.fromkeys(ANCHORS.names, part) | {"anchor_id": part, "part": part, "caption": f"Of {part}"}
        for part in PARTS
    ]
    prompts = [dict.fromkeys(PROMPTS.names, part) | {"text": f"of  {part}"} for part in PARTS]
    write_table(folder / "anchors.parquet", anchors, ANCHORS)
    write_table(folder / "prompts.parquet", prompts, PROMPTS)
    return folder


def test_a_stage_that_asks_for_a_wrong_part_is_named(tmp_path):
    inputs = {"prepare": tables(tmp_path)}

    def read(stage: str) -> set[str]:
        """The parts that it gets, each by both doors."""
        ctx = StageContext(None, 1, inputs, tmp_path, 0, None, None, stage)
        got = set()
        for part in PARTS:
            try:
                rows = held_out.anchors_of(ctx, part)
                prompts = (
                    held_out.training_prompts(ctx)
                    if part == "train"
                    else held_out.held_out_prompts(ctx, part)
                )
            except HeldOutRead as error:
                assert str(error).startswith(f"stage {stage or 'without a name'} asked for anchors of part ")
                assert part in str(error)
            else:
                assert [row["part"] for row in (*rows, *prompts)] == [part, part]
                got.add(part)
        return got

    for stage in (*TRAINING, "", "a plug-in"):
        assert read(stage) == {"train"}
    assert read("judge_gate") == {"calibrate", "gate"} and read("gate") == {"gate"}
    assert read("evaluate") == {"train", "calibrate", "report"}
    assert STAGES.keys() - held_out.READS.keys() == {"prepare"}


def test_of_held_out_parts_training_knows_digests_alone(tmp_path):
    ctx = StageContext(None, 1, {"prepare": tables(tmp_path)}, tmp_path, 0, None, None, "pair")
    marks = held_out.held_out(ctx)
    assert marks.part_of("OF gate ") == "gate" and marks.part_of("of train") is None
    assert marks.clips == {part: part for part in PARTS[1:]}
    assert not any(part in digest for digest in marks.prompts for part in PARTS)
    assert HeldOut.of([], []) == HeldOut({}, {})


def test_no_training_stage_opens_the_tables_by_another_door():
    named = {"anchors", "prompts", "anchors.parquet", "prompts.parquet"}
    for stage in (*TRAINING, "judge_gate", "gate", "evaluate"):
        for module in reachable(f"loop.steps.{stage}") - {"loop.held_out", "loop.steps.prepare"}:
            path = (ROOT / Path(*module.split("."))).with_suffix(".py")
            if path.is_file() and module.startswith("loop.steps"):
                strings = {
                    node.value
                    for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.Constant)
                }
                found = {s for s in strings if isinstance(s, str)} & {n for n in named if "." in n}
                assert not found, f"{module} reads {found} itself, past loop/held_out.py"
