"""The run directory: commit, damage, lock, events."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import loop.store
from loop.errors import UserError
from loop.store import SCRATCH, Store, fingerprint, read_manifest, write_atomically

Usage = namedtuple("Usage", "total used free")


def make(store: Store, stage: str = "sample", text: str = "hello"):
    work = store.begin(1, stage, "mark")
    (work / "clips").mkdir(exist_ok=True)
    (work / "clips" / "a.mp4").write_text(text)
    (work / "takes.parquet").write_text("table")
    (work / SCRATCH / "half").write_text("half")
    return store.commit(work, 1, stage, "mark", {"sample": {"n": 1}}, {"prepare": "p"}, {"torch": "2"})


def test_commit_leaves_exactly_the_files_and_their_manifest(tmp_path):
    artefact = make(Store(tmp_path))
    assert artefact == tmp_path / "round-001" / "sample"
    found = {path.relative_to(artefact).as_posix() for path in artefact.rglob("*") if path.is_file()}
    assert found == {"clips/a.mp4", "takes.parquet", "manifest.json"}
    manifest = read_manifest(artefact)
    assert manifest.files["clips/a.mp4"] == {
        "size": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }
    assert not (tmp_path / "round-001" / ".work-sample").exists()


def test_two_commits_of_the_same_work_are_the_same_bytes(tmp_path):
    first, second = make(Store(tmp_path / "a")), make(Store(tmp_path / "b"))
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_work_is_kept_for_the_same_fingerprint_only(tmp_path):
    store = Store(tmp_path)
    (store.begin(1, "sample", "mark") / "shard").write_text("1")
    assert (store.begin(1, "sample", "mark") / "shard").exists()
    assert not (store.begin(1, "sample", "other") / "shard").exists()


def test_damage_is_named_with_its_remedy(tmp_path):
    artefact = make(Store(tmp_path))
    (artefact / "clips" / "a.mp4").write_text("hellO")
    store = Store(tmp_path)
    store.check_sizes(artefact, read_manifest(artefact))
    with pytest.raises(UserError, match=r"clips/a\.mp4 is damaged: its sha256 .*move .* away"):
        store.check_hashes(artefact)
    (artefact / "clips" / "a.mp4").write_text("hell")
    with pytest.raises(UserError, match=r"a\.mp4 is damaged: 4 bytes, committed with 5"):
        store.check_sizes(artefact, read_manifest(artefact))
    (artefact / "clips" / "a.mp4").unlink()
    with pytest.raises(UserError, match=r"a\.mp4 is missing"):
        store.check_sizes(artefact, read_manifest(artefact))
    (artefact / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_manifest(artefact)


def test_a_directory_without_manifest_is_not_overwritten(tmp_path):
    store = Store(tmp_path)
    (make(store) / "manifest.json").unlink()
    with pytest.raises(UserError, match="no artefact of this run"):
        store.begin(1, "sample", "mark")


def test_another_schema_is_refused(tmp_path):
    artefact = make(Store(tmp_path))
    manifest = json.loads((artefact / "manifest.json").read_text())
    (artefact / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        read_manifest(artefact)


def test_a_fingerprint_covers_stage_round_config_and_inputs():
    marks = {
        fingerprint("a", 1, {"x": 1}, {"i": "p"}),
        fingerprint("b", 1, {"x": 1}, {"i": "p"}),
        fingerprint("a", 2, {"x": 1}, {"i": "p"}),
        fingerprint("a", 1, {"x": 2}, {"i": "p"}),
        fingerprint("a", 1, {"x": 1}, {"i": "q"}),
    }
    assert len(marks) == 5


def test_the_lock_is_held_across_processes_and_freed_by_death(tmp_path):
    code = (
        "import sys, pathlib, loop.store; loop.store.Store(pathlib.Path(sys.argv[1])).lock(); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    store = Store(tmp_path / "run")
    assert store.is_locked()
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        store.lock()
    holder.kill()
    holder.communicate()
    assert not store.is_locked()
    store.lock()
    assert store.events()[-1] == {
        **store.events()[-1],
        "event": "previous_process_died",
        "pid": str(holder.pid),
    }
    assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
    store.unlock()
    assert (tmp_path / "run" / "lock").read_text() == ""


def test_the_lock_refuses_what_is_no_run(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run"):
        Store(tmp_path).lock()
    with pytest.raises(UserError, match="is a file"):
        Store(tmp_path / "precious.txt").lock()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt"]


def test_no_disk_space(tmp_path):
    store = Store(tmp_path, disk_usage=lambda path: Usage(10**9, 10**9, 10**6))
    store.require_space(0.001)
    with pytest.raises(
        UserError, match=r"no disk space: .* 0\.00 GB free, a stage asks for 0\.50.*launch\.min_free_gb"
    ):
        store.require_space(0.5)


def test_a_torn_event_line_costs_that_event_only(tmp_path):
    store = Store(tmp_path)
    store.event("one")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": 1, "ev')
    store.event("two", round=1)
    assert [event["event"] for event in store.events()] == ["one", "two"]


def test_attempts_are_numbered(tmp_path):
    store = Store(tmp_path)
    assert [store.begin_attempt().name for _ in range(11)][-1] == "attempt-11"
    assert store.begin_attempt().name == "attempt-12"


def test_write_atomically_replaces(tmp_path):
    write_atomically(tmp_path / "x", "1")
    write_atomically(tmp_path / "x", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "2"


def test_a_commit_flushes_every_file_and_every_folder_above_one(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(loop.store, "_flush", lambda path: flushed.append(Path(path)))
    work = tmp_path / "round-000" / ".work-prepare"
    for name in ("a.txt", "clips/b.txt", "deep/er/c.txt", "_scratch/d.txt", "deep/_scratch/e.txt"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    artefact = Store(tmp_path).commit(work, 0, "prepare", "f" * 64, {}, {}, {})
    assert set(read_manifest(artefact).files) == {"a.txt", "clips/b.txt", "deep/er/c.txt"}
    names = ("a.txt", "clips/b.txt", "deep/er/c.txt", ".", "clips", "deep", "deep/er")
    assert {work / name for name in names} <= set(flushed)
    assert not (artefact / "_scratch").exists() and not (artefact / "deep" / "_scratch").exists()


def test_many_files_are_flushed_together_and_none_is_left_out(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(loop.store, "_flush", flushed.append)
    few = [tmp_path / str(n) for n in range(3)]
    loop.store._flush_all(few)
    assert flushed == few
    flushed.clear()
    many = [tmp_path / str(n) for n in range(1000)]
    loop.store._flush_all(many)
    assert sorted(flushed) == sorted(many)

    def failing(path):
        if path.name == "700":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.store, "_flush", failing)
    with pytest.raises(OSError, match="No space left"):
        loop.store._flush_all(many)
