"""`retake prune`: what goes is read by nothing that comes, and everything says what went."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import loop.prune
from loop.branch import branch
from loop.cli import app
from loop.config_file import load_config
from loop.curves import read_curves
from loop.errors import StageFailed, UserError
from loop.prune import prune, read_later, what_can_go
from loop.pruned import pruned_in, read_pruned
from loop.report import write_report
from loop.stages import EVERY_ROUND
from loop.status import read_status
from loop.store import Store
from loop.verify import summary, verify
from tests.fabricated_run import fabricate
from tests.toy_campaign import CONFIG, run_toy_campaign, tree


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return tmp_path / "toy.yaml"


def run(config: Path, name: str, rounds: int) -> Path:
    root = config.parent / name
    run_toy_campaign(load_config(config, [f"rounds={rounds}"]), Store(root))
    return root


def names(found: set[Path], root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in found}


def prune_all(root: Path) -> set[str]:
    """Frees all that can go, the last round's included; returns the names of the artefacts."""
    store = Store(root)
    going = what_can_go(store, keep_last=0)
    prune(store, going)
    return names({entry.artefact for entry in going}, root)


def same_but_for_pruned(root: Path, whole: Path, *rounds: int) -> None:
    """`rounds` are whole in both; of the others only files that pruned.json names are gone."""
    mine, other = tree(root), tree(whole)
    gone = {f"{p.relative_to(root)}/{n}" for p in root.glob("round-*/*") for n in read_pruned(p)}
    assert gone and gone == other.keys() - mine.keys()
    assert {n: b for n, b in mine.items() if not n.endswith("/pruned.json")} == {
        n: b for n, b in other.items() if n not in gone
    }
    assert not any(name.startswith(f"round-{k:03d}") for name in gone for k in rounds)


@pytest.mark.parametrize(
    ("rejected", "judges_rejected", "generator", "judge"),
    [("", "", 2, 2), ("2", "", 1, 2), ("1,2", "2", 0, 1), ("", "1,2", 2, 0)],
)
def test_a_pruned_run_is_extended_to_the_same_bytes(
    config, monkeypatch, rejected, judges_rejected, generator, judge
):
    """What the next round reads is there, whoever is in force."""
    monkeypatch.setenv("TOY_REJECT", rejected)
    monkeypatch.setenv("TOY_REJECT_JUDGE", judges_rejected)
    root = run(config, "run", 2)
    needed = names(read_later(Store(root), 2), root)
    assert needed == {
        "round-000/prepare",
        "round-000/evaluate",
        "round-002/label",
        "round-002/sample",
        f"round-{generator:03d}/evaluate",
        *([f"round-{generator:03d}/update"] if generator else []),
        *([f"round-{judge:03d}/train_judge"] if judge else []),
    }
    freed = prune_all(root)
    everything = {f"round-{k:03d}/{stage}" for k in (1, 2) for stage in EVERY_ROUND}
    assert freed == everything - needed
    run(config, "run", 2)  # there is nothing to do
    run(config, "run", 3)
    same_but_for_pruned(root, run(config, "whole", 3), 0, 3)
    assert verify(root).damage == []


def test_a_campaign_out_of_patience_keeps_what_more_patience_reads(config, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "2")

    def impatient(root: Path, patience: int) -> None:
        run_toy_campaign(load_config(config, ["rounds=4", f"patience={patience}"]), Store(root))

    impatient(config.parent / "run", 1)
    root, store = config.parent / "run", Store(config.parent / "run")
    assert store.last_round() == 2  # and not 4
    needed = names(read_later(store, 2), root)
    assert {"round-001/evaluate", "round-001/update", "round-002/label", "round-002/sample"} <= needed
    prune_all(root)
    impatient(root, 2)
    impatient(config.parent / "whole", 2)
    same_but_for_pruned(root, config.parent / "whole", 0, 3, 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three rounds that were never pruned."""
    (config := tmp_path_factory.mktemp("whole") / "toy.yaml").write_text(CONFIG)
    return run(config, "run", 3)


@pytest.mark.parametrize("failed", EVERY_ROUND)
def test_a_round_under_way_is_finished_after_a_prune(config, monkeypatch, whole, failed):
    """Whatever its gates are going to say: round 3 is made with all of round 2 accepted, or none of it."""
    monkeypatch.setenv("TOY_FAIL", f"2-{failed}")
    with pytest.raises(StageFailed):
        run(config, "run", 2)
    monkeypatch.delenv("TOY_FAIL")
    root = config.parent / "run"
    assert prune_all(root)
    run(config, "run", 3)
    same_but_for_pruned(root, whole, 0, 3)


def test_what_stays_is_what_the_next_round_reads(config):
    """Poisoned one by one: without any of them the next round ends at it, by name."""
    root = run(config, "run", 1)
    for number, artefact in enumerate(sorted(read_later(Store(root), 1))):
        copy = shutil.copytree(root, config.parent / f"copy-{number}")
        poisoned = copy / artefact.relative_to(root)
        (poisoned / "pruned.json").write_text(json.dumps({"files": {"shards/0.bin": 320}}))
        with pytest.raises(UserError, match=rf"{poisoned} is needed, but 1 of its files were pruned"):
            run(config, copy.name, 2)
        shutil.rmtree(copy)


def test_the_last_rounds_can_be_kept(config):
    root = run(config, "run", 3)
    store = Store(root)
    rounds = [
        {entry.artefact.parent.name for entry in what_can_go(store, keep_last)} for keep_last in range(4)
    ]
    assert rounds == [
        {"round-001", "round-002", "round-003"},
        {"round-001", "round-002"},
        {"round-001"},
        set(),
    ]


def test_a_prune_that_was_killed_is_finished_by_the_next(config, monkeypatch):
    """A name in pruned.json comes before the file goes, so at no point is there damage."""
    root = run(config, "run", 2)
    store = Store(root)
    going = what_can_go(store, 0)
    unlink, left = Path.unlink, [5]

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".bin":
            left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(store, going)
    monkeypatch.undo()
    assert verify(root).damage == [] and len(list(root.rglob("pruned.json"))) == 2
    run(config, "run", 2)
    # even where the files would be kept now
    again = what_can_go(store, keep_last=9)
    assert [len(entry.files) for entry in again] == [3] and again[0].artefact == going[1].artefact
    prune_all(root)
    same_but_for_pruned(root, run(config, "whole", 2), 0)
    assert what_can_go(store, 0) == []


def test_verify_and_status_say_what_was_pruned_and_still_see_damage(config):
    root = run(config, "run", 2)
    assert pruned_in(root) is None and read_status(root).pruned is None
    prune_all(root)
    num = sum(len(read_pruned(path)) for path in root.glob("round-*/*"))
    found = verify(root)
    assert found.damage == [] and (found.num_pruned, found.pruned_bytes) == (num, num * 320)
    assert f"({num} files, {num * 0.32:.1f} kB, were pruned): all as committed" in summary(found)
    assert str(read_status(root).pruned) == f"{num} files ({num * 0.32:.1f} kB) of rounds 1, 2"
    assert json.loads(read_status(root).as_json())["pruned"]["rounds"] == [1, 2]
    (root / "round-001" / "gate" / "gate.json").unlink()
    (root / "round-001" / "pair" / "pruned.json").write_text("{")
    damage = verify(root).damage
    assert damage[0] == "round-001/gate/gate.json: is missing"
    assert damage[1].startswith("round-001/pair/pruned.json: ") and len(damage) == 2


def test_the_command_asks_first(config, monkeypatch):
    root = run(config, "run", 2)
    before = tree(root)

    def retake(*arguments: str, **more):
        return CliRunner().invoke(app, ["prune", str(root), *arguments], **more)

    listed = retake()
    assert listed.exit_code == 0 and "nothing was freed; --yes frees them" in listed.stderr
    assert "round-001  sample              4 files     1.3 kB" in listed.stdout
    assert tree(root) == before
    freed = retake("--yes")
    assert freed.exit_code == 0 and freed.stdout.endswith("freed\n")
    assert pruned_in(root).rounds == [1]  # the last round stays unless told otherwise
    assert "nothing to free" in retake("--yes").stdout
    assert "pruned: " in CliRunner().invoke(app, ["status", str(root)]).stdout
    assert Store(root).events()[-1]["event"] == "pruned"
    running = Store(root)
    running.lock()
    refused = retake("--keep-last", "0", "--yes")
    running.unlock()
    assert refused.exit_code == 2 and "is in use by process" in refused.stderr


def test_a_terminal_is_asked(config, monkeypatch):
    root = run(config, "run", 2)
    monkeypatch.setattr("loop.commands.campaigns._on_a_terminal", lambda: True)
    for answer, pruned in (("n\n", False), ("y\n", True)):
        done = CliRunner().invoke(app, ["prune", str(root)], input=answer)
        assert done.exit_code == 0 and "free them? [y/N]" in done.stdout
        assert (pruned_in(root) is not None) == pruned


def test_a_branch_from_a_pruned_round_says_what_is_missing(config):
    root = run(config, "run", 3)
    assert prune_all(root)
    with pytest.raises(UserError) as error:
        branch(root, 1, config.parent / "early", ["update.beta=7"])
    message = str(error.value)
    assert "--from 1: the next round would read what was pruned" in message
    for stage in ("train_judge", "sample", "label", "update", "evaluate"):
        assert f"  round-001/{stage}: 4 files, 1.3 kB" in message
    assert "judge_gate" not in message and not (config.parent / "early").exists()
    late = config.parent / "late"
    run_toy_campaign(branch(root, 3, late, ["update.beta=7", "rounds=4"]), Store(late))
    assert verify(late).damage == [] and pruned_in(late).rounds == [1, 2, 3]


def test_files_that_a_branch_shares_stay_with_it(config):
    root = run(config, "run", 2)
    late = config.parent / "late"
    branch(root, 1, late, [])
    going = what_can_go(Store(root), 0)
    linked = sum(entry.size for entry in going if entry.artefact.parent.name == "round-001")
    assert sum(entry.links for entry in going) == linked > 0
    prune_all(root)
    assert verify(late).damage == [] and verify(late).num_pruned == 0


def test_a_damaged_file_is_not_hidden_by_a_prune(config):
    root = run(config, "run", 2)
    (root / "round-001" / "pair" / "shards" / "2.bin").unlink()
    prune_all(root)
    assert verify(root).damage == ["round-001/pair/shards/2.bin: is missing"]


def test_the_report_keeps_what_it_shows(tmp_path):
    """A page of before has its clips after; what it tells of the prune is new."""
    root = fabricate(tmp_path, rounds=2, num_prompts=24)
    before, curves = write_report(root).read_text(), repr(read_curves(root))
    prune_all(root)
    assert read_pruned(root / "round-002" / "evaluate")  # but those that the page shows
    assert any((root / "round-002" / "evaluate" / "clips").iterdir())
    after = write_report(root).read_text()
    assert "Pruned: " in after and "file is gone" not in after and "Pruned: " not in before
    assert after.count("data:video/mp4") == before.count("data:video/mp4") > 0
    assert repr(read_curves(root)) == curves
    clips = sorted((root / "round-001" / "evaluate" / "clips").iterdir())
    listed = json.dumps({"files": {f"clips/{path.name}": 1 for path in clips}})
    (root / "round-001" / "evaluate" / "pruned.json").write_text(listed)
    for path in clips:
        path.unlink()
    assert "clips of this page are among them" in write_report(root).read_text()


def test_the_walk_runs_no_stage_and_leaves_nothing(config, monkeypatch):
    root = run(config, "run", 1)
    before = tree(root)
    monkeypatch.setattr(loop.prune.StageRunner, "run", None)
    read_later(Store(root), 1)
    assert tree(root) == before
