"""Settings of the `vllm serve` that a judge of type vllm starts. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

# what retake itself passes, and from which key
_SET_BY_RETAKE = {
    "model": "judge.model",
    "served-model-name": "a name of its own",
    "host": "127.0.0.1: nobody else is to reach the server",
    "uds": "127.0.0.1",
    "port": "judge.vllm.port",
    "dtype": "judge.dtype",
    "trust-remote-code": "judge.trust_remote_code",
    "generation-config": "vllm: judge.temperature alone decides how replies are drawn",
    "api-key": "none: nobody else is to reach the server",
}

# room, speed and what is logged; float rounding aside, no vote depends on them
_RESOURCES = frozenset(
    (
        "api-server-count",
        "block-size",
        "cpu-offload-gb",
        "data-parallel-size",
        "disable-log-stats",
        "disable-uvicorn-access-log",
        "enable-chunked-prefill",
        "enable-log-requests",
        "enable-prefix-caching",
        "enforce-eager",
        "gpu-memory-utilization",
        "kv-cache-memory-bytes",
        "limit-mm-per-prompt",
        "max-model-len",
        "max-num-batched-tokens",
        "max-num-seqs",
        "mm-processor-cache-gb",
        "pipeline-parallel-size",
        "tensor-parallel-size",
        "uvicorn-log-level",
    )
)


class VllmConfig(BaseModel):
    """The server of a judge of type vllm. Of these keys, some `arguments` alone decide votes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executable: str = Field(
        "vllm", description="the vllm command of its own environment, such as .venv-vllm/bin/vllm"
    )
    arguments: dict[str, Any] = Field(
        {},
        description="of `vllm serve`, named as there without the dashes in front: a value, a list of values, "
        "a mapping (passed as JSON), true (the flag alone) or false (--no-NAME)",
    )
    environment: dict[str, str] = Field(
        {}, description="variables of the server's process beside this one's; no secrets, they are written"
    )
    port: int | None = Field(None, ge=1024, le=65535, description="on 127.0.0.1; null = a free one")
    start_timeout_seconds: float = Field(
        1800.0, gt=0, description="until the server answers; a download of the weights counts"
    )
    max_restarts: int = Field(3, ge=0, description="of a server that died, as long as a stage has it open")
    log: str | None = Field(
        None, description="file that the server writes to; null = in the stage's work folder"
    )

    @field_validator("arguments")
    @classmethod
    def _passable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, value in arguments.items():
            if not re.fullmatch(r"[a-z][a-z0-9.-]*", name):
                raise ValueError(
                    f"{name!r} is no argument's name; write it as on the command line, without the dashes in "
                    "front, such as max-model-len"
                )
            if (given := _SET_BY_RETAKE.get(name.removeprefix("no-"))) is not None:
                raise ValueError(f"{name} is set by retake ({given}); remove it here")
            if value is None:
                raise ValueError(f"{name} has no value; true passes the flag alone")
        return arguments

    @field_validator("environment", mode="before")
    @classmethod
    def _as_text(cls, environment: Any) -> Any:
        """YAML reads VLLM_CPU_KVCACHE_SPACE: 1 as a number."""
        if not isinstance(environment, Mapping):
            return environment
        return {
            name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for name, value in environment.items()
        }

    @property
    def deciding(self) -> dict[str, Any]:
        """The arguments that may decide votes: a run does not go on with others."""
        return {
            name: value
            for name, value in self.arguments.items()
            if name.removeprefix("no-") not in _RESOURCES
        }


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """The words of a command line, in the mapping's order."""
    words: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, Mapping):
            words += [f"--{name}", json.dumps(dict(value))]
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *(str(item) for item in value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def find_executable(given: str) -> str:
    """The absolute path of judge.vllm.executable. Raises ValueError where there is none."""
    found = shutil.which(os.path.expanduser(given))
    if found is None:
        raise ValueError(
            f"judge.vllm.executable: no command {given!r}; install vLLM into an environment of its own "
            "(docs/judges.md) and name its command, such as .venv-vllm/bin/vllm"
        )
    return os.path.abspath(found)
