"""The campaign. `from loop import load_campaign` opens a run for a notebook; see docs/analysing.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loop.api import load_campaign as load_campaign

__all__ = ["load_campaign"]


def __getattr__(name: str) -> Any:
    """load_campaign on first use: it needs pandas, and every import of this package runs this file."""
    if name in __all__:
        from loop.api import load_campaign

        return load_campaign
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
