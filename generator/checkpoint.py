"""Checkpoint files whose bytes depend on their content alone."""

from __future__ import annotations

import json
import os
from pathlib import Path


def canonicalise_safetensors(path: Path) -> None:
    """Rewrites the file's header with sorted metadata.

    safetensors writes two or more metadata keys in the order of a hash map, which differs from process
    to process; the tensors' bytes and offsets stay as they are.
    """
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    os.replace(temporary, path)
