"""Where model references point: a folder, a hub id, or `embedded:NAME` for weights that ship with retake."""

from __future__ import annotations

from pathlib import Path

from loop.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded"


def resolve_model(reference: str, key: str) -> str:
    """The folder or hub id that `from_pretrained` takes. `key` names the config key in messages."""
    if reference.startswith("embedded:"):
        folder = EMBEDDED / reference.removeprefix("embedded:")
        if not folder.is_dir():
            have = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.glob("tiny-*")))
            raise UserError(f"{key}: no such model {reference!r}; shipped with retake: {have}")
        return str(folder)
    looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    path = Path(reference).expanduser()
    if path.is_dir():
        return str(path)
    if looks_like_path:
        raise UserError(
            f"{key}: no folder {reference!r}; give a model folder, a hub id ORGANISATION/NAME, or embedded:NAME"
        )
    return reference
