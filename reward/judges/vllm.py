"""A judge behind a `vllm serve` that retake starts in vLLM's own environment, waits for and ends.

The weights are files here (or a hub id), so that a round can train them in process and ask them through vLLM.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from reward.config import JudgeConfig, without_transport
from reward.judges.openai import OpenAIJudge
from reward.judges.server_process import ServerProcess
from reward.vllm_config import command_line

# settings that change no vote; where the weights lie is no part of them, their content is
_NOT_IDENTITY = {"batch_size", "target", "answers", "model", "vllm", "scorer"}


class VllmJudge(OpenAIJudge):
    """For `judge.type: vllm`; `judge.model` is a folder or hub id. The first ask starts its server."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Starts nothing yet."""
        assert config.model is not None and config.vllm is not None, "JudgeConfig gives both for type vllm"
        # a name that no other server has: a stranger on the same port is not taken for ours
        served = f"judge-{secrets.token_hex(4)}"
        process = ServerProcess(
            config.vllm, served, lambda executable, port: serve_command(config, served, executable, port),
            "the judge's server (judge.vllm)",
        )  # fmt: skip
        super().__init__(config, served=served, process=process, draw=draw, sleep=sleep)

    def identity(self) -> str:
        """sha256 of the settings that decide votes and of the weights' files, or of a hub id's name alone."""
        if self._identity is None:
            assert self.config.model is not None and self.config.vllm is not None
            settings = self.config.model_dump(mode="json", exclude=_NOT_IDENTITY)
            settings["server"] = without_transport(settings["server"])
            settings["arguments"] = self.config.vllm.deciding
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            folder = Path(self.config.model).expanduser()
            files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
            for path in files:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            if not files:
                digest.update(self.config.model.encode())
            self._identity = digest.hexdigest()
        return self._identity


def serve_command(config: JudgeConfig, served: str, executable: str, port: int) -> list[str]:
    """`vllm serve` for this judge: replies drawn as in process, reached from this machine alone."""
    assert config.model is not None and config.vllm is not None
    model = os.path.expanduser(config.model)
    most = 2 * max(config.num_frames, config.num_segment_frames)
    arguments = {
        "served-model-name": served,
        "host": "127.0.0.1",
        "port": port,
        "generation-config": "vllm",  # else a model's own top_k and repetition penalty bend the distribution
        "dtype": config.dtype,
        "limit-mm-per-prompt": {"image": most, "video": 0},  # it keeps memory free for as much as this
        **({"trust-remote-code": True} if config.trust_remote_code else {}),
        **config.vllm.arguments,
    }
    path = os.path.abspath(model) if os.path.isdir(model) else model
    return [executable, "serve", path, *command_line(arguments)]
