"""Which commit a campaign started from, and whether anything differs from it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from loop import git_state
from loop.git_state import config_state

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    _git(tmp_path, "init", "-q")
    (tmp_path / "campaign.yaml").write_text("name: a\n")
    (tmp_path / ".gitignore").write_text("ignored/\n__pycache__/\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "a")
    return tmp_path


def test_a_config_file_is_as_committed_or_not(repository: Path) -> None:
    file = repository / "campaign.yaml"
    commit = _git(repository, "rev-parse", "HEAD")
    (repository / "other.yaml").write_text("name: b\n")  # another file says nothing about this one
    assert config_state(file) == {"commit": commit, "dirty": False}
    assert config_state(repository / "other.yaml") == {"commit": commit, "dirty": True}
    file.write_text("name: c\n")
    assert config_state(file) == {"commit": commit, "dirty": True}


def test_without_git_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "campaign.yaml").write_text("name: a\n")
    assert config_state(tmp_path / "campaign.yaml") is None
    assert config_state(None) is None  # a shipped config: the code's state covers it
    _git(tmp_path, "init", "-q")
    assert config_state(tmp_path / "campaign.yaml") is None  # no commit yet
    monkeypatch.setenv("PATH", "")
    assert git_state.code_state() is None


def test_the_code_counts_only_where_git_tracks_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = repository / "ignored" / "loop"  # a wheel in a project's ignored environment
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(git_state, "__file__", str(package / "git_state.py"))
    assert git_state.code_state() is None
    package = repository / "loop"
    package.mkdir()
    (package / "__init__.py").touch()
    _git(repository, "add", "loop")
    _git(repository, "commit", "-q", "-m", "b")
    monkeypatch.setattr(git_state, "__file__", str(package / "git_state.py"))
    clean = {"commit": _git(repository, "rev-parse", "HEAD"), "dirty": False}
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").touch()
    (repository / "campaign.yaml").write_text("outside of the packages\n")
    assert git_state.code_state() == clean
    (package / "new.py").touch()
    assert git_state.code_state() == clean | {"dirty": True}
