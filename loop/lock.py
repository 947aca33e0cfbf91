"""One process per run directory. The kernel frees the lock when its process dies: it can not go stale."""

import errno
import fcntl
import os
import time
from pathlib import Path

from loop.errors import UserError

SECONDS_OF_A_LOOK = 0.5  # `is_held` takes the lock itself for an instant, which must not fail a launch


class RunLock:
    """The file `lock` of a run: flock says whether it is held, its text says by which process."""

    def __init__(self, root: Path):
        self._root = root
        self._path = root / "lock"
        self._handle: int | None = None

    def acquire(self) -> str:
        """Returns "" or the id of the process that died while it held the lock.

        Raises UserError if another process holds it, or if the directory is something else than a run.
        """
        self._check_directory()
        self._root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _wait_for(handle)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"{self._path} cannot be locked ({error}); choose a --dir on a local disk"
                ) from None
            raise UserError(
                f"{self._root} is in use by process {self.owner() or 'unknown'}; wait for it, stop it, "
                "or choose another --dir"
            ) from None
        self._handle = handle
        owner = self.owner()  # only now: before, it may have been that of a process about to end orderly
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return owner

    def release(self) -> None:
        """An orderly end empties the file; a crash leaves the process id in it."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def owner(self) -> str:
        """The id of the process that holds it, or that died while it did; "" after an orderly end."""
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def is_held(self) -> bool:
        """Whether any process holds it now."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(handle)

    def _check_directory(self) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise UserError(f"{self._root} is a file; choose another --dir")
        if self._root.is_dir() and any(self._root.iterdir()) and not self._path.exists():
            raise UserError(f"{self._root} is not empty and not a run of retake; choose another --dir")


def _wait_for(handle: int) -> None:
    """Locks the file for this process alone. Raises OSError if another one keeps it."""
    until = time.monotonic() + SECONDS_OF_A_LOOK
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() >= until:
                raise
        time.sleep(0.02)
