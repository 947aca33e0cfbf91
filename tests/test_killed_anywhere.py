"""SIGKILL at picked changes of the run directory; `make test-chaos` does it at every one of them."""

from pathlib import Path
from random import Random

import pytest

from loop.config_file import load_config
from loop.store import Store
from tests.killing import AtOperations, fork, kill_until_done
from tests.toy_campaign import CONFIG, run_toy_campaign, tree


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the toy campaign in a folder; its gates reject a judge and an update, so that status must look."""
    monkeypatch.setenv("TOY_REJECT", "2")
    monkeypatch.setenv("TOY_REJECT_JUDGE", "1")
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)
    return lambda root: run_toy_campaign(load_config(config), Store(root))


def kill_at_operations(run, root: Path, picks) -> list[str]:
    at = AtOperations(root, picks)

    def work() -> None:
        at.listen()
        run(root)

    return kill_until_done(lambda: fork(work), at.kill, root)


def test_about_ten_kills_anywhere_end_in_the_same_bytes(run, tmp_path):
    hits = kill_at_operations(run, tmp_path / "killed", lambda name: Random(name).random() < 0.02)
    assert 8 <= len(hits) <= 24, hits
    run(tmp_path / "whole")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
