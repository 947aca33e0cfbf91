"""Clips as data URIs: what the page shows travels inside it, up to a stated size."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from loop.pruned import was_pruned
from loop.report.markup import Html, element

DEFAULT_BUDGET = 48 * 1024 * 1024  # bytes of mp4 files; a third more once encoded


class Clips:
    """Embeds clip files until the budget is spent and counts what it left out."""

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self.spent = 0
        self.shown: list[Path] = []
        self.missing: list[Path] = []
        self.pruned: list[Path] = []
        self.too_large: list[Path] = []

    def fits(self, paths: list[Path]) -> bool:
        """Whether these files still fit into the budget; missing ones weigh nothing."""
        return self.spent + sum(path.stat().st_size for path in paths if path.is_file()) <= self.budget

    def video(self, path: Path | None, label: str) -> Html:
        """A looping video of the file, or a box that says why there is none."""
        if path is None:
            return element("div", "no clip", _class="video empty", role="img", aria_label=f"{label}: no clip")
        if not path.is_file():
            pruned = was_pruned(path)
            (self.pruned if pruned else self.missing).append(path)
            return element(
                "div",
                "pruned" if pruned else "file is gone",
                _class="video empty",
                title=str(path),
                role="img",
                aria_label=f"{label}: {path.name} {'was pruned' if pruned else 'is gone'}",
            )
        if not self.fits([path]):
            self.too_large.append(path)
            return element(
                "div",
                "left out for size",
                _class="video empty",
                title=str(path),
                role="img",
                aria_label=f"{label}: left out for size",
            )
        self.shown.append(path)
        data = path.read_bytes()
        self.spent += len(data)
        source = "data:video/mp4;base64," + b64encode(data).decode("ascii")
        return element(
            "video",
            src=source,
            _class="video",
            muted=True,
            playsinline=True,
            preload="auto",
            aria_label=label,
            title=label,
        )
