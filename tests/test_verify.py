"""`retake verify`: each kind of damage is named, and nothing else is."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import loop.store
from loop.config_file import load_config
from loop.store import Store
from loop.verify import summary, verify
from tests.toy_campaign import CONFIG, run_toy_campaign, tree


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    root = tmp_path / "run"
    run_toy_campaign(load_config(tmp_path / "toy.yaml", ["rounds=1"]), Store(root))
    return root


def test_a_whole_run_is_as_committed_and_stays_untouched(run):
    before = tree(run)
    (run / "round-002" / ".work-sample").mkdir(parents=True)  # under way
    (run / "round-002" / ".work-sample" / "half").write_text("x")
    found = verify(run)
    assert found.damage == [] and found.num_artefacts == 10
    files = [p for p in before if p.startswith("round-") and not p.endswith("manifest.json")]
    assert found.num_files == len(files)
    assert found.num_bytes == sum(len(before[p]) for p in files)
    assert summary(found).endswith("all as committed")
    assert {p: b for p, b in tree(run).items() if ".work" not in p} == before


def test_each_damaged_file_is_named(run):
    flipped = run / "round-001" / "update" / "shards" / "2.bin"
    content = bytearray(flipped.read_bytes())
    content[5] ^= 1
    flipped.write_bytes(content)
    (run / "round-001" / "label" / "shards" / "0.bin").unlink()
    (run / "round-000" / "evaluate" / "shards" / "3.bin").write_bytes(b"short")
    (run / "round-001" / "pair" / "new.txt").write_text("x")
    assert verify(run).damage == [
        "round-000/evaluate/shards/3.bin: has 5 bytes, was committed with 320",
        "round-001/label/shards/0.bin: is missing",
        "round-001/pair/new.txt: was not committed; remove it",
        "round-001/update/shards/2.bin: its sha256 has changed",
    ]


def test_edited_and_foreign_manifests_are_named(run):
    def edit(name: str, **changes) -> None:
        path = run / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    edit("round-001/sample", config={})
    (run / "round-001" / "gate" / "manifest.json").write_text("{")
    (run / "round-001" / "judge_gate" / "manifest.json").unlink()
    found = verify(run).damage
    assert "round-001/sample/manifest.json: was edited" in "\n".join(found)
    assert any(line.startswith("round-001/gate/manifest.json: ") and "is damaged" in line for line in found)
    assert "round-001/judge_gate: has no manifest.json, so it was never committed" in found
    # label was made from the judge gate that is not there any more
    assert any(line.startswith("round-001/label/manifest.json: its input judge_gate") for line in found)
    assert len(found) == 4


def test_an_artefact_of_another_place_is_named(run):
    (run / "round-001" / "update").rename(run / "round-001" / "evaluate2")
    found = "\n".join(verify(run).damage)
    assert "round-001/evaluate2/manifest.json: is that of update in round 1" in found


def test_a_file_that_the_disk_cannot_read_is_named(run, monkeypatch):
    """As one on a bad sector: the others are hashed all the same."""
    hashed = loop.store._sha256

    def unreadable(path: Path) -> str:
        if path.parts[-3:] == ("label", "shards", "1.bin"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return hashed(path)

    monkeypatch.setattr(loop.store, "_sha256", unreadable)
    (run / "round-001" / "update" / "shards" / "2.bin").unlink()
    assert verify(run).damage == [
        "round-001/label/shards/1.bin: cannot be read: Input/output error",
        "round-001/update/shards/2.bin: is missing",
    ]


def test_a_stage_that_is_gone_is_named(run):
    """Even one that no later stage reads."""
    shutil.rmtree(run / "round-001" / "evaluate")
    assert verify(run).damage == ["round-001/evaluate: is missing, but round-001/gate, made later, is there"]
    shutil.rmtree(run / "round-001" / "gate")  # now the last one is pair: the rest is yet to come
    assert verify(run).damage == []
