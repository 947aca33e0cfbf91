"""Clips as data URIs: what the page shows travels inside it, each clip once, up to a stated size."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from loop.pruned import was_pruned
from loop.report.markup import Html, element, join

DEFAULT_BUDGET = 48 * 1024 * 1024  # bytes of mp4 files; a third more once encoded


class Clips:
    """Embeds clip files until the budget is spent and counts what it left out.

    A clip lies in the page once, by content. Where it is shown first it is the video's own `src`, which needs
    no script; a clip that is only shown on demand lies in a data block of `store`. Every other video names it
    by `data-clip`, and the script fetches it from there.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self.spent = 0
        self.missing: list[Path] = []
        self.pruned: list[Path] = []
        self.too_large: list[Path] = []
        self._names: dict[bytes, str] = {}  # by content
        self._known: dict[Path, str] = {}
        self._stored: dict[str, bytes] = {}

    @property
    def shown(self) -> list[Path]:
        """The files that are in the page."""
        return list(self._known)

    def fits(self, paths: Iterable[Path], share: float = 1.0) -> bool:
        """Whether these files still fit into this share of the budget; missing ones weigh nothing."""
        new = {path for path in paths if path not in self._known and path.is_file()}
        return self.spent + sum(path.stat().st_size for path in new) <= share * self.budget

    def name(self, path: Path | None) -> str | None:
        """A clip to be shown on demand by this name; None where it cannot be, which is counted."""
        if path is None or self._absent(path) is not None:
            return None
        name, data = self._embed(path)
        if data is not None:
            self._stored[name] = data
        return name

    def video(self, path: Path | None, label: str, on_demand: bool = False) -> Html:
        """The clip, or a box that says why there is none. on_demand: empty until the script fills it."""
        absent = "no clip" if path is None else self._absent(path)
        if path is None or absent is not None:
            return element(
                "div",
                absent,
                _class="video empty",
                title=None if path is None else str(path),
                role="img",
                aria_label=f"{label}: {absent}",
            )
        if on_demand:
            name, data = self.name(path), None
        else:
            name, data = self._embed(path)
        source = None if data is None else _uri(data)
        return element(
            "video",
            src=source,
            data_clip=name,
            _class="video",
            muted=True,
            playsinline=True,
            controls=source is not None,  # for a page without its script, which removes them
            preload="none",  # a page of many clips opens at once; the script loads what comes into view
            aria_label=label,
            title=label,
        )

    def store(self) -> Html:
        """The clips that are shown on demand, one inert block each."""
        blocks = (
            element("script", Html(b64encode(data).decode("ascii")), type="text/plain", id=f"clip-{name}")
            for name, data in self._stored.items()
        )
        return join(*blocks)

    def _absent(self, path: Path) -> str | None:
        """Why the file cannot be shown."""
        if path in self._known:
            return None
        if not path.is_file():
            pruned = was_pruned(path)
            listed = self.pruned if pruned else self.missing
            listed += [] if path in listed else [path]
            return "pruned" if pruned else "file is gone"
        if not self.fits([path]):
            self.too_large += [] if path in self.too_large else [path]
            return "left out for size"
        return None

    def _embed(self, path: Path) -> tuple[str, bytes | None]:
        """(name, the bytes if they are in the page for the first time)."""
        if path in self._known:
            return self._known[path], None
        data = path.read_bytes()
        digest = sha256(data).digest()
        new = digest not in self._names
        name = self._known[path] = self._names.setdefault(digest, f"c{len(self._names)}")
        self.spent += len(data) if new else 0
        return name, data if new else None


def _uri(data: bytes) -> str:
    return "data:video/mp4;base64," + b64encode(data).decode("ascii")
