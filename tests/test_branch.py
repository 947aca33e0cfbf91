"""`retake branch`: shared rounds keep their bytes, later ones follow the new config, damage stays out."""

import json
from pathlib import Path

import pytest

from loop.branch import branch, read_origin
from loop.config_file import load_config
from loop.errors import UserError
from loop.status import read_status
from loop.store import Store, read_manifest
from loop.verify import verify
from tests.toy_campaign import CONFIG, run_toy_campaign, tree


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    run_toy_campaign(load_config(tmp_path / "toy.yaml"), Store(tmp_path / "run"))
    return tmp_path / "run"


def artefacts(root: Path, *rounds: int) -> dict[str, bytes]:
    return {p: b for p, b in tree(root).items() if any(p.startswith(f"round-{k:03d}") for k in rounds)}


def test_a_branch_shares_rounds_and_goes_on_with_its_own_config(source):
    before, root = tree(source), source.with_name("other")
    loaded = branch(source, 1, root, ["update.beta=7", "rounds=3"])
    assert artefacts(root, 0, 1, 2, 3) == artefacts(source, 0, 1)  # nothing of round 2
    run_toy_campaign(loaded, Store(root))
    assert artefacts(root, 0, 1) == artefacts(source, 0, 1)
    update = read_manifest(root / "round-002" / "update")
    shared = read_manifest(root / "round-001" / "update")
    assert update.config["update"]["beta"] == 7 and shared.config["update"]["beta"] != 7
    assert (root / "round-003" / "gate").is_dir()
    assert verify(root).damage == [] and tree(source) == before
    assert (
        read_origin(root).round == 1 and json.loads((root / "resolved.json").read_text())["name"] == "other"
    )
    # its resolved.json alone resumes and extends it
    run_toy_campaign(load_config(root / "resolved.json", ["rounds=4"]), Store(root))
    assert (root / "round-004" / "gate").is_dir()


def test_a_branch_without_changes_is_the_run(source):
    """So a branch computes from the shared rounds what the run itself computed from them."""
    root = source.with_name("same")
    run_toy_campaign(branch(source, 1, root, []), Store(root))
    assert artefacts(root, 0, 1, 2) == artefacts(source, 0, 1, 2)


def test_later_rounds_still_refuse_another_config(source):
    root = source.with_name("other")
    run_toy_campaign(branch(source, 1, root, ["update.beta=7"]), Store(root))
    with pytest.raises(UserError, match=r"update\.beta .*used by round-002/update") as error:
        run_toy_campaign(load_config(root / "resolved.json", ["update.beta=8"]), Store(root))
    assert "round-001" not in str(error.value)


def test_what_cannot_be_branched_is_refused_and_leaves_nothing(source):
    root = source.with_name("other")
    for arguments, message in [
        ((3, root, []), "--from 3: .* has no such finished round; it has 0, 1, 2"),
        ((1, root, ["seed=5", "evaluate.num_seeds=9"]), r"(?s)in common.*seed \(was 0.*evaluate\.num_seeds"),
        ((1, root, ["judge.model=toy/other"]), r"judge\.model"),
        ((1, root, ["update.bata=7"]), r"did you mean update\.beta"),
        ((2, root, ["rounds=1"]), "rounds is 1, but 2 are shared"),
        ((1, source, []), "exists; choose another --dir"),
    ]:
        with pytest.raises(UserError, match=message):
            branch(source, *arguments)
        assert sorted(p.name for p in source.parent.iterdir()) == ["run", "toy.yaml"]
    shard = source / "round-001" / "label" / "shards" / "0.bin"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"round-001/label/shards/0\.bin is damaged"):
        branch(source, 1, root, [])
    assert not root.exists()
    branch(source, 0, root, [])  # the damage is in a later round


def test_a_shared_artefact_that_is_lost_is_not_made_with_another_config(source):
    root = source.with_name("other")
    loaded = branch(source, 1, root, ["update.beta=7"])
    (root / "round-001" / "update").rename(source.with_name("away"))
    with pytest.raises(UserError, match=r"round-001/update is missing: .*branch again"):
        run_toy_campaign(loaded, Store(root))


def test_a_branch_that_died_before_its_first_launch_can_be_gone_on_with(source):
    """And whoever repeats the command is told how."""
    root = source.with_name("other")
    loaded = branch(source, 1, root, ["update.beta=7"])
    found = load_config(root / "resolved.json")
    assert found.config == loaded.config and read_status(root).state == "interrupted"
    with pytest.raises(UserError, match=r"other exists; `retake run .*resolved\.json --dir .*other` goes"):
        branch(source, 1, root, ["update.beta=7"])
    with pytest.raises(UserError, match="other exists; choose another --dir"):
        branch(source, 2, root, ["update.beta=7"])
    before = (root / "campaign.yaml").read_text(), (root / "resolved.json").read_text()
    run_toy_campaign(loaded, Store(root))
    assert before == ((root / "campaign.yaml").read_text(), (root / "resolved.json").read_text())


def test_what_a_launch_would_refuse_makes_no_branch(source, monkeypatch):
    def missing(configured):
        if configured:
            raise UserError("track.0: the package wandb is not installed")

    monkeypatch.setattr("loop.branch.check_trackers", missing)
    with pytest.raises(UserError, match="wandb is not installed"):
        branch(source, 1, source.with_name("other"), ["track=[{type: wandb, project: mine}]"])
    with pytest.raises(UserError, match="train_judge"):
        branch(source, 1, source.with_name("other"), ["train_judge.checkpoint_every=3"])
    assert sorted(p.name for p in source.parent.iterdir()) == ["run", "toy.yaml"]
