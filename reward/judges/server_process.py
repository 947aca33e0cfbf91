"""A server that retake starts for itself: waited for, started anew when it dies, and never left behind.

reward/judges/guard.py stands between: it ends the server with all its children as soon as this process goes.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx2

from reward.judges.server import ServerUnavailable
from reward.vllm_config import VllmConfig, find_executable

_GRACE = 15.0  # seconds between SIGTERM and SIGKILL
_LOOK_EVERY = 0.25  # seconds
_UNWELL = 60.0  # seconds that a server which runs may refuse connections or call itself ill
_PROBE = 10.0  # seconds for one look; a server that is merely busy may take longer, and is left alone
_LISTING = 2.0  # seconds for one look at a server that starts

_log = logging.getLogger(__name__)

# what the end of the log says, and what to do; the first that fits
_REMEDIES = (
    (
        r"unrecognized arguments|invalid choice|expected (one|at least one) argument|invalid \S+ value",
        "correct judge.vllm.arguments",
    ),
    (r"address already in use", "set judge.vllm.port to a free one, or to null"),
    (
        r"out of memory|cache blocks|kv cache|gpu memory utili[sz]ation|max seq len|max_model_len",
        "lower judge.vllm.arguments.max-model-len, or give it more memory: "
        "judge.vllm.arguments.gpu-memory-utilization, on a CPU judge.vllm.environment.VLLM_CPU_KVCACHE_SPACE",
    ),
    (
        r"no module named|importerror|cannot open shared object",
        "mend the environment of judge.vllm.executable",
    ),
)
_REMEDY = "change judge.vllm.arguments or judge.vllm.environment to what it asks for"


class ServerProcess:
    """At most one server, started when it is first needed, on 127.0.0.1.

    `command(executable, port)` is its command line; it must list the model as `name` (None = as it likes).
    `what` calls it in messages.
    """

    def __init__(
        self, settings: VllmConfig, name: str | None, command: Callable[[str, int], list[str]], what: str
    ) -> None:
        self.settings, self.name, self.what = settings, name, what
        self._command = command
        self._guard: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._num_starts = 0
        self._temporary: Path | None = None  # of the log, where nobody says where it is to be
        self._failed = False
        self._log_start = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        if self.settings.log is not None:
            return Path(self.settings.log).expanduser()
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="retake-vllm-"))
        return self._temporary / "vllm.log"

    async def ready(self, *, after_trouble: bool) -> str:
        """The address of a server that answers: started if there is none, started anew if it died.

        after_trouble: a request has just failed, so look whether it is well, too. Raises ValueError for one
        that does not start, ServerUnavailable when the restarts are spent. Not for two callers at once.
        """
        if self._guard is None:
            await self._start()
        elif self._guard.poll() is not None or (after_trouble and not await self._recovers()):
            await self._restart()
        return self.url

    def close(self) -> None:
        """End the server with all its children and wait for it. The log of one that failed stays."""
        self._stop()
        self._num_starts = 0
        if self._temporary is not None and not self._failed:
            shutil.rmtree(self._temporary)
            self._temporary = None

    async def _restart(self) -> None:
        assert self._guard is not None
        code = self._guard.poll()
        how = "did not answer any more" if code is None else f"ended ({_words_of(code)})"
        said = f"{self.what} {how} while it was asked"
        await anyio.to_thread.run_sync(self._stop)
        if self._num_starts > self.settings.max_restarts:
            raise ServerUnavailable(
                f"{said}, and so did {self._num_starts - 1} before it (judge.vllm.max_restarts). "
                f"{self._end_of_log()}\n{self._remedy()}; the same command resumes with what is still unasked"
            )
        _log.warning("%s; starting it again, its log is %s", said, self.log_path)
        await self._start()

    async def _start(self) -> None:
        """Return once the server lists its model. Raises ValueError with its log's end if it never does."""
        executable = find_executable(self.settings.executable)
        self._port = self.settings.port or _free_port()
        command = self._command(executable, self._port)
        self._num_starts += 1
        self._open(command, executable)
        began = time.monotonic()
        _log.info("starting %s on port %d, its log is %s", self.what, self._port, self.log_path)
        async with self._client() as client:
            while not await self._lists_its_model(client):
                assert self._guard is not None
                if (code := self._guard.poll()) is not None:
                    self._stop()
                    raise ValueError(
                        f"{self.what} ended before it answered ({_words_of(code)}). {self._end_of_log()}\n"
                        f"{self._remedy()}"
                    )
                if time.monotonic() - began > self.settings.start_timeout_seconds:
                    await anyio.to_thread.run_sync(self._stop)
                    raise ValueError(
                        f"{self.what} did not answer within {self.settings.start_timeout_seconds:g} s; raise "
                        "judge.vllm.start_timeout_seconds if it is only slow (weights are downloaded at the "
                        f"first start). {self._end_of_log()}"
                    )
                await anyio.sleep(_LOOK_EVERY)
        _log.info("%s answers after %.0f s", self.what, time.monotonic() - began)

    def _open(self, command: list[str], executable: str) -> None:
        path = self.log_path
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = [
            sys.executable,
            "-I",
            str(Path(__file__).with_name("guard.py")),
            str(os.getpid()),
            f"{_GRACE}",
        ]
        with path.open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._guard = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(executable),
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which ends the server
            )

    def _environment(self, executable: str) -> dict[str, str]:
        """This process's, but as if the other environment were active instead of this one's."""
        ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        path = os.pathsep.join([str(Path(executable).parent), kept.get("PATH", os.defpath)])
        # vLLM's own processes talk to each other there
        return {**kept, "PATH": path, "VLLM_HOST_IP": "127.0.0.1", **self.settings.environment}

    def _stop(self) -> None:
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()  # which is its sign
        try:
            self._guard.wait(2 * _GRACE)
        except subprocess.TimeoutExpired:
            _log.warning("%s does not end (pid %d); end it by hand", self.what, self._guard.pid)
        self._guard = None

    async def _recovers(self) -> bool:
        """Whether the server that runs answers, or comes to, before long."""
        assert self._guard is not None
        until = time.monotonic() + _UNWELL
        async with self._client() as client:
            while self._guard.poll() is None and time.monotonic() < until:
                try:
                    response = await client.get(self.url.removesuffix("/v1") + "/health", timeout=_PROBE)
                    if response.status_code < 500:
                        return True
                except httpx2.TimeoutException:
                    return True  # busy
                except httpx2.RequestError:
                    pass  # it is going, or gone
                await anyio.sleep(_LOOK_EVERY)
        return False

    async def _lists_its_model(self, client: httpx2.AsyncClient) -> bool:
        """False, too, where a stranger answers: the name is this judge's own."""
        try:
            response = await client.get(f"{self.url}/models", timeout=_LISTING)
            listed = [model["id"] for model in response.json()["data"]]
            return self.name is None or self.name in listed
        except (httpx2.RequestError, ValueError, KeyError, TypeError):
            return False

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(trust_env=False)  # no proxy stands between a machine and itself

    def _end_of_log(self) -> str:
        """The lines that say most, of this start alone."""
        self._failed = True
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        lines = [line.rstrip() for line in lines if line.strip()]
        telling = dict.fromkeys(line for line in lines[:-_LAST] if re.search(r"Error\b.*: |error: ", line))
        shown = [*list(telling)[-_TELLING:], *lines[-_LAST:]]
        text = "\n".join(f"  {line[:_WIDEST]}" for line in shown)
        return f"The end of its log, {self.log_path}:\n{text or '  (nothing)'}"

    def _remedy(self) -> str:
        said = self._end_of_log().lower()
        return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, said)), _REMEDY)


_TELLING, _LAST, _WIDEST = 4, 8, 400  # lines that name an error, last lines, characters of a line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _words_of(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
