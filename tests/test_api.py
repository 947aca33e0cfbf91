"""`from loop import load_campaign`: tidy frames of runs of any state, the docs' examples, and no torch."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from loop import load_campaign
from loop.errors import UserError
from loop.frames import COLUMNS
from tests.recorded_run import HARD, prompt_id, record

DOCS = (Path(__file__).parent.parent / "docs" / "analysing.md").read_text()
FRAMES = tuple(COLUMNS)
TAKE = f"{prompt_id('a cat runs')}-0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "quickstart", kept={2: False})


def test_frames_hold_what_the_run_says(run):
    campaign = load_campaign(run)
    assert campaign.rounds == [0, 1, 2] and campaign.state == "done"
    assert campaign.config["update"]["beta"] == 50.0
    sizes = {name: len(getattr(campaign, name)()) for name in FRAMES}
    assert sizes == {
        "curves": 4 + 2 * 6,
        "scores": 3 * 8,
        "takes": 3 * 8 + 2 * 8,
        "votes": 2 * 2,
        # label: one question in two dimensions; evaluate: eight in one metric for the base, in three later
        "verdicts": 2 * 2 + (1 + 3 + 3) * 8 * 2,
        "pairs": 2,
        "drops": 2,
        "gates": 4,
        "stages": 2 + 2 * 8,
    }
    scores = campaign.scores()
    gained = (
        scores[scores["round"] == 2].set_index("take_id")["oracle_total"]
        - scores[scores["round"] == 0].set_index("take_id")["oracle_total"]
    )
    assert gained.to_numpy() == pytest.approx([0.2] * 8)
    assert scores.groupby("round")["kept"].first().tolist() == [True, True, False]
    votes = campaign.votes()
    assert votes["answer_overall"].tolist()[0] == "first" and votes["answer_overall"].isna().tolist()[1]
    assert votes["seed"].iloc[0] == 2**62 + 1  # not through a float
    gates = campaign.gates()
    assert gates[["round", "stage"]].to_numpy().tolist() == [
        [1, "judge_gate"], [1, "gate"], [2, "judge_gate"], [2, "gate"],
    ]  # fmt: skip
    assert gates["accepted"].tolist() == [True, True, True, False]
    assert gates["value"].tolist() == [0.8, 0.6, 0.8, 0.6]
    stages = campaign.stages()
    assert stages["seconds"].sum() == pytest.approx(1.5 * 18) and stages["ended"].notna().all()
    assert list(campaign.pairs()["signs"].iloc[0]) == [1, 1, -1]
    assert campaign.drops()["count"].sum() == 6


def test_a_run_that_failed_and_one_that_has_just_begun(tmp_path):
    failed = load_campaign(record(tmp_path / "failed", stop_before=(1, "update")))
    assert failed.state == "failed" and failed.rounds == [0, 1]
    assert len(failed.pairs()) == 1 and len(failed.scores()) == 8 and list(failed.gates()["round"]) == [1]
    stages = failed.stages().set_index(["round", "stage"])
    assert stages.loc[(1, "update"), "state"] == "failed"
    assert stages.loc[(1, "update"), "seconds_of_all"] == 0.25 and pd.isna(
        stages.loc[(1, "update"), "seconds"]
    )
    begun = load_campaign(record(tmp_path / "begun", stop_before=(0, "prepare")))
    for name in FRAMES:
        frame = getattr(begun, name)()
        assert len(frame) == (18 if name == "stages" else 0)
        assert dict(frame.dtypes.astype(str)) == COLUMNS[name]  # an empty frame has its columns too
    with pytest.raises(UserError, match="there is no run nowhere"):
        load_campaign("nowhere")


def test_clips_are_found_by_every_id_of_the_tables(tmp_path):
    run = record(tmp_path / "run")
    (run / "round-000" / "prepare" / "clips").mkdir()
    for i in range(len(HARD)):
        (run / "round-000" / "prepare" / "clips" / f"anchor-{i}.mp4").write_bytes(b"")
    campaign = load_campaign(run)
    for path in campaign.takes()["path"]:
        assert Path(path).is_file()
    verdicts = campaign.verdicts()
    for row in verdicts.itertuples():
        for clip_id in (row.first_id, row.second_id):
            path = campaign.clip(clip_id, row.round)
            assert path.stem == clip_id.rpartition("/")[2]
    for clip_id, round, where in [
        (TAKE, 1, "round-001/evaluate"),
        (f"win_rate_vs_base/{TAKE}", 2, "round-000/evaluate"),
        (f"win_rate_vs_previous/{TAKE}", 2, "round-001/evaluate"),
        (f"r002-fresh-{TAKE}", None, "round-002/sample"),
    ]:
        assert where in campaign.clip(clip_id, round).as_posix()
    with pytest.raises(UserError, match=f"no clip {TAKE}; give the round"):
        campaign.clip(TAKE)
    pruned = run / "round-001" / "sample" / "clips" / f"r001-fresh-{TAKE}.mp4"
    pruned.unlink()
    with pytest.raises(UserError, match=f"{pruned.name} is gone: it was pruned"):
        campaign.clip(f"r001-fresh-{TAKE}")
    assert len(campaign.takes()) == 40  # what it was is still told


def test_the_docs_examples_run(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    (run.parent.parent / "runs").symlink_to(run.parent)
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    told = capsys.readouterr().out
    assert len(blocks) == 4 and "Campaign('runs/quickstart', done, rounds [0, 1, 2])" in told
    assert names["gained"].to_numpy() == pytest.approx([0.2] * 4)
    assert f"round-001/sample/clips/r001-fresh-{TAKE}.mp4" in told


@pytest.mark.parametrize("name", FRAMES)
def test_the_docs_list_every_column_in_order(name):
    [columns] = re.findall(rf"^\| `{name}\(\)` \|[^|]*\|(.*)\|$", DOCS, re.M)
    told = [word for word in re.findall(r"`([a-z_]+)`", columns) if word in COLUMNS[name]]
    assert list(dict.fromkeys(told)) == list(COLUMNS[name])


def test_every_column_that_stages_write_is_in_a_frame():
    from loop.steps.evaluate import METRICS
    from loop.steps.judging import VERDICTS, VOTES
    from loop.steps.preference import DROPS, PAIRS
    from loop.steps.sample import TAKES

    stored = {
        "curves": METRICS,
        "verdicts": VERDICTS,
        "votes": VOTES,
        "drops": DROPS,
        "pairs": PAIRS,
        "takes": TAKES,
    }
    for name, schema in stored.items():
        assert set(schema.names) - set(COLUMNS[name]) <= {"answers", "file"}, name


def test_it_imports_no_torch(run):
    code = (
        "import sys, loop\nassert not {'pandas', 'pyarrow'} & set(sys.modules)\n"
        f"from loop import load_campaign\nlen(load_campaign({str(run)!r}).scores())\n"
        "print({'matplotlib'} & set(sys.modules))\n"
        "import loop.compare, loop.report.comparison, loop.export_vbench\n"
        "print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["set()", "set()", ""]
