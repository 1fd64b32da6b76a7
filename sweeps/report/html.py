"""Markup that cannot be broken out of: text is escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Html", "join", "scroll", "tag", "title"]


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


def _safe(child: str) -> str:
    return child if isinstance(child, Html) else escape(child, quote=True)


def tag(name: str, *children: str, **attributes: object) -> Html:
    """An element; children that are not `Html` are escaped, and so is every attribute.

    Args:
        name: Of the element.
        children: Its content.
        attributes: `class_` stands for `class` and `stroke_width` for `stroke-width`; None leaves one
            out; numbers are rounded to one digit, which is enough for a drawing in pixels.
    """
    head = "".join(
        f' {_key(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{head}>{''.join(map(_safe, children))}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Several pieces of markup or text in a row."""
    return Html("".join(map(_safe, parts)))


def scroll(label: str, content: Html, *, tall: bool = False) -> Html:
    """What may be wider than the page, or taller than the screen: a region that the keyboard scrolls."""
    look = "scroll tall" if tall else "scroll"
    return tag("div", content, class_=look, tabindex="0", role="region", aria_label=label)


def title(text: str) -> Html:
    """What a browser shows while the pointer rests on the element around it."""
    return tag("title", text)


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return escape(str(value), quote=True)
