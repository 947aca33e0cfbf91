"""HTML elements whose text is escaped unless it is already markup, so that no caption can inject any."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_VOID = {"br", "circle", "col", "input", "line", "link", "meta", "path", "polygon", "polyline", "rect"}


class Html(str):
    """A string that is markup already; every other string is text."""


Child = Html | str | int | float | None


def element(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """One element. Attribute names: `_class` and `_for` lose the underscore, `a_b` becomes `a-b`.

    None and False leave an attribute or a child out, True writes a bare attribute.
    """
    words = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.lstrip("_").replace("_", "-")
        words.append(name if value is True else f'{name}="{escape(str(value), quote=True)}"')
    opening = "<" + " ".join(words)
    if tag in _VOID:
        return Html(
            opening + ("/>" if tag in {"circle", "line", "path", "polygon", "polyline", "rect"} else ">")
        )
    return Html(f"{opening}>{join(*children)}</{tag}>")


def join(*children: Child) -> Html:
    """Children one after another, text escaped."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None))


def data_block(name: str, value: Any) -> Html:
    """JSON for the page's script, as an inert block: no text in it can end the block or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return element("script", Html(text.replace("<", "\\u003c")), type="application/json", id=name)
