"""Which commit the code and the config were at when a campaign started; unknown outside of git."""

import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("loop", "reward", "generator", "configs")
_SECONDS = 10  # a repository on a sleeping network disk must not hold a campaign up


def code_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of this checkout, None where the packages are not tracked by git (a wheel).

    dirty: a file of the packages differs from the commit, or is not part of it.
    """
    root = Path(__file__).resolve().parent.parent
    return _state(root, tracked="loop/__init__.py", paths=PACKAGES)


def config_state(file: Path | None) -> dict[str, Any] | None:
    """The same of the repository that a config file lies in; None for a shipped config or one outside of git.

    dirty: this file differs from the commit, or is not part of it.
    """
    if file is None:
        return None
    return _state(file.resolve().parent, tracked=None, paths=(file.name,))


def _state(folder: Path, tracked: str | None, paths: tuple[str, ...]) -> dict[str, Any] | None:
    # a wheel below some project's folder is ignored there, and that project's commit says nothing about it
    if tracked is not None and _git(folder, "ls-files", "--error-unmatch", tracked) is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--ignored", "--untracked-files=all", "--", *paths)
    if commit is None or changed is None:
        return None
    # compiled files are ignored by name; an ignored source file is no part of the commit
    dirty = [line for line in changed.splitlines() if "__pycache__" not in line]
    return {"commit": commit.strip(), "dirty": bool(dirty)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository, or one that git does not trust."""
    # no lock is taken and no program of the repository's own configuration is started
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
