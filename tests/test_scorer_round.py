"""A scorer in a campaign: what is checked before the first stage, and stages that train and measure it."""

import json
import logging

import numpy as np
import pytest
from typer.testing import CliRunner

from generator.clips import write_clip
from loop.chosen_judge import choose_judge
from loop.cli import app
from loop.config_file import load_config
from loop.errors import UserError
from loop.models import check_models
from loop.progress import Display
from loop.runner import StageRunner
from loop.stages import STAGES, StageContext
from loop.steps import judge_gate, prepare, train_judge
from loop.store import Store
from reward.calibration import save
from reward.scorers.head import read_head
from tests.test_presets import TINY
from tests.toy_campaign import CONFIG, run_toy_campaign

SCORER = [
    "judge={type: scorer, model: embedded:tiny-judge, num_segment_frames: 5, frame_size: 32, "
    "time_stamps: false, "
    "scorer: {new_head: true, instructions: 'prompt: {prompt}', head_learning_rate: 0.02}}",
    "gate.enabled=false",
    "known_answers.num_train=8",
    "train_judge={num_steps: 2, batch_size: 4, log_every: 1, warmup_steps: 0}",
]


def config(*overrides):
    return load_config("quickstart", [*TINY, *SCORER, *overrides]).config


def run(tmp_path, stage, name, settings, round=1, **inputs):
    out = tmp_path / name
    out.mkdir()
    progress = Display(1).stage(round, name)
    own_name = stage.__module__.rpartition(".")[2]
    stage(StageContext(settings, round, inputs, out, 3, progress, logging.getLogger("test"), own_name))
    return out


def test_a_round_trains_a_scorer_measures_it_and_the_next_goes_on_from_it(tmp_path):
    settings = config()
    check_models(settings)
    anchors = run(tmp_path, prepare.run, "prepare", settings, round=0)
    first = run(tmp_path, train_judge.run, "train-1", settings, prepare=anchors)
    assert {"model.safetensors", "reward_head.safetensors"} <= {p.name for p in (first / "judge").iterdir()}
    assert read_head(first / "judge" / "reward_head.json").outputs == settings.judge.dimensions
    metrics = json.loads((first / "metrics.json").read_text())
    assert metrics["num_pairs"] == 8 and 0 < metrics["btt_loss"] < 2
    rows = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [("btt", 1), ("btt", 2)]

    gate = run(tmp_path, judge_gate.run, "gate-1", settings, prepare=anchors, train_judge=first)
    found = json.loads((gate / "gate.json").read_text())
    assert found["num_questions"] == 4 and found["abstentions"] == 0
    assert json.loads((gate / "calibrators.json").read_text())
    # the second round has votes of the first one's label stage, and does not try to prefer among them
    second = run(
        tmp_path, train_judge.run, "train-2", settings, round=2, prepare=anchors, judge_parent=first,
        label=tmp_path, sample=tmp_path,
    )  # fmt: skip
    heads = [(f / "judge" / "reward_head.safetensors").read_bytes() for f in (first, second)]
    assert heads[0] != heads[1]


def test_a_runs_trained_scorer_is_what_the_commands_ask(tmp_path):
    scorer = "judge: {type: scorer, model: toy/toy, scorer: {new_head: true}}\ngate: {enabled: false}"
    (tmp_path / "toy.yaml").write_text(CONFIG.replace("judge: {model: toy/toy}", scorer))
    run_toy_campaign(load_config(tmp_path / "toy.yaml"), Store(tmp_path / "run"))
    trained = Store(tmp_path / "run").artefact(2, "train_judge")
    save({}, Store(tmp_path / "run").artefact(2, "judge_gate") / "calibrators.json")
    (trained / "judge").mkdir()  # toy stages train nothing
    assert choose_judge(str(tmp_path / "run")).judge.model == f"{trained}/judge"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gate.enabled=true"], "gate asks the judge as it came"),
        (["train_judge.num_steps=0"], r"train_judge\.num_steps is 0"),
        (["train_judge.preference_steps=3"], "writes no reasoning"),
        (["judge.scorer.new_head=false"], r"set judge\.scorer\.new_head to true"),
        (
            ["judge.scorer={head: checklist, checklist: example}"],
            r"judge\.type scorer with a checklist cannot be trained",
        ),
        (
            ["judge.scorer={head: checklist, checklist: no.yaml}"],
            r"judge\.scorer\.checklist: cannot read no\.yaml",
        ),
        (
            ["judge.scorer={head: checklist, checklist: example}", "judge.dimensions=[overall, beauty]"],
            r"judge\.scorer\.outputs\.beauty",
        ),
    ],
)
def test_what_cannot_work_stops_before_the_first_stage(overrides, message):
    with pytest.raises(UserError, match=message):
        check_models(config(*overrides))


def test_a_checklist_is_in_the_fingerprint_by_its_content(tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("questions: [{output: motion, weight: 1, question: Does it move?}]")

    def part(path):
        settings = config(
            f"judge.scorer={{head: checklist, checklist: {path}}}",
            "judge.dimensions=[motion, overall]",
            "train_judge.num_steps=0",
        )
        return StageRunner(settings, Store(tmp_path / "run"), STAGES, Display(1))._slice(STAGES["label"])

    before = part(file)
    other = tmp_path / "copy.yaml"
    other.write_text(file.read_text())
    assert part(other) == before
    file.write_text("questions: [{output: motion, weight: 2, question: Does it move?}]")
    assert part(file) != before


def test_campaigns_with_other_judges_keep_their_fingerprints(tmp_path):
    settings = load_config("quickstart", TINY).config
    found = StageRunner(settings, Store(tmp_path / "run"), STAGES, Display(1))._slice(STAGES["label"])
    assert settings.judge.scorer is None and "scorer" not in found["judge"]


def test_the_commands_ask_a_scorer_about_two_files(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", rng.integers(0, 255, (17, 32, 32, 3), np.uint8), 8.0)
    arguments = [
        "judge",
        *(str(tmp_path / f"{name}.mp4") for name in "ab"),
        "--prompt",
        "a red ring moves left",
    ]
    overrides = [f"--set={override}" for override in (*TINY, SCORER[0])]
    done = CliRunner().invoke(app, [*arguments, "--ballots", "8", "--json", *overrides])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["num_votes"] == 16 and "(scorer, of quickstart)" in found["judge"]
    assert "first/second/tie: text_alignment 0.27/0.27/0.46" in found["reasoning"][0]["reasoning"]
