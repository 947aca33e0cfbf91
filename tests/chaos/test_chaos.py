"""Hundreds of kills: `make test-chaos`. After each one tests/killing.py looks at artefacts and status.

The counts are asserted, so that the number that docs/crashes.md states is the number that were survived.
"""

from pathlib import Path

import pytest

from loop.config_file import load_config
from loop.stages import plan
from loop.store import Store
from tests import test_kill
from tests.killing import AtRandom, fork, kill_until_done
from tests.test_killed_anywhere import kill_at_operations, run  # noqa: F401 (the fixture)
from tests.toy_campaign import CONFIG, NAMED_STAGES, run_toy_campaign, tree

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def test_once_before_every_change_of_the_run_directory(run, tmp_path):  # noqa: F811
    hits = kill_at_operations(run, tmp_path / "killed", lambda name: True)
    assert len(hits) >= 450 and len(set(hits)) == len(hits)
    for number, stage in plan(2):
        work = f"round-{number:03d}/.work-{stage}"
        inside = [hit for hit in hits if f" {work}/" in hit]
        assert any("open" in hit and "shards" not in hit for hit in inside), "in the stage"
        assert any(f"os.rename {work}/.manifest.json.new" in hit for hit in inside), "in the commit"
        assert any(f"os.rename {work} " in hit for hit in hits), "in the rename that publishes"
    run(tmp_path / "whole")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("kills", "most", "launch"), [(60, 0.4, "inline"), (12, 6.0, "process")])
def test_at_random_moments_from_outside(run, tmp_path, kills, most, launch):  # noqa: F811
    """With `process` the kill hits the command alone, and its worker must not write beside its successor."""
    loaded = load_config(tmp_path / "toy.yaml", [f"launch.type={launch}"])
    stages = {"stages": NAMED_STAGES} if launch == "process" else {}
    run_toy_campaign(loaded, Store(tmp_path / "whole"), **stages)
    whole, random, hits = tree(tmp_path / "whole"), AtRandom(11, most), 0
    for number in range(100):
        root = tmp_path / f"killed-{number}"

        def work(root: Path = root) -> None:
            run_toy_campaign(loaded, Store(root), **stages)

        hits += len(kill_until_done(lambda work=work: fork(work), random.kill, root))
        assert tree(root) == whole
        if hits >= kills:
            return
    pytest.fail(f"only {hits} kills: this machine is too fast for {most} s")


def test_the_real_tiny_campaign_at_random_moments(tmp_path):
    whole = test_kill.run(tmp_path / "whole", 1, {})
    when = {"seed": 5, "most": whole["seconds"] / 12, "growth": 1.1}
    killed = test_kill.run(tmp_path / "killed", 2, when)
    assert len(killed["died"]) >= 10, killed["died"]
    test_kill.same(tree(tmp_path / "whole" / "run"), tree(tmp_path / "killed" / "run"))


def test_the_toy_config_has_two_rounds():
    """Or the plan above would not be the one that ran."""
    assert "rounds: 2" in CONFIG
