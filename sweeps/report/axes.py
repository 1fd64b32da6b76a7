"""A frame with two axes, as SVG: what every plot of the page stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.report.html import Html, join, tag
from sweeps.report.scales import SHADES, Scale

__all__ = ["Figure", "Frame", "legend", "svg"]


class Figure(NamedTuple):
    """A part of the page.

    Attributes:
        heading: Of its section.
        drawing: The chart, or None where there is nothing to draw.
        caption: What it shows and leaves out, or why there is no drawing.
        wide: It needs the whole width of a large screen.
    """

    heading: str
    drawing: Html | None
    caption: str
    wide: bool = False


def svg(width: float, height: float, label: str, *children: str, fits: bool = True) -> Html:
    """A drawing that scales with the page and says to a screen reader what it shows.

    Args:
        width: In pixels, where the page has the room.
        height: Likewise.
        label: What it shows, for a screen reader.
        children: Its content.
        fits: On a phone it shrinks to the width of the screen and its letters grow; else it is scrolled.
    """
    box = f"0 0 {width:.0f} {height:.0f}"
    style = f"--w:{width:.0f}px"
    return tag(
        "svg",
        *children,
        class_="chart fits" if fits else "chart",
        viewBox=box,
        role="img",
        aria_label=label,
        style=style,
    )


def legend(x: float, y: float, worst: str, best: str) -> Html:
    """The colours from worst to best with the values at both ends, as SVG at a point."""
    bars = [tag("rect", x=x + 8.0 * i, y=y, width=8.2, height=10, class_=f"v{i} fill") for i in range(SHADES)]
    end = x + 8.0 * SHADES
    words = (
        tag("text", worst, x=x - 6, y=y + 9.5, class_="tick", text_anchor="end"),
        tag("text", best, x=end + 6, y=y + 9.5, class_="tick"),
    )
    return tag("g", *bars, *words)


@dataclass(frozen=True)
class Frame:
    """A plot's rectangle inside a drawing, in pixels, with its axes."""

    left: float
    top: float
    width: float
    height: float
    x: Scale
    y: Scale

    def at(self, x: object, y: object) -> tuple[float, float]:
        """Pixel position of a point."""
        return self.left + self.x.at(x) * self.width, self.top + (1 - self.y.at(y)) * self.height

    def axes(self, x_label: str, y_label: str) -> Html:
        """Grid lines, ticks and labels."""
        right, bottom = self.left + self.width, self.top + self.height
        parts: list[str] = []
        for share, text in self.y.ticks:
            y = self.top + (1 - share) * self.height
            parts.append(tag("line", x1=self.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", text, x=self.left - 8, y=y + 4, class_="tick", text_anchor="end"))
        for share, text in self.x.ticks:
            x = self.left + share * self.width
            parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
            parts.append(tag("text", text, x=x, y=bottom + 19, class_="tick", text_anchor="middle"))
        parts.append(tag("line", x1=self.left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        middle = self.left + self.width / 2
        parts.append(tag("text", x_label, x=middle, y=bottom + 40, class_="label", text_anchor="middle"))
        parts.append(_upright(y_label, 15, self.top + self.height / 2))
        return join(parts)

    def path(self, points: Sequence[tuple[object, object]]) -> str:
        """The `d` of a line through some points."""
        pixels = (self.at(x, y) for x, y in points)
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)


def _upright(text: str, x: float, y: float) -> Html:
    turn = f"rotate(-90 {x:.1f} {y:.1f})"
    return tag("text", text, x=x, y=y, class_="label", text_anchor="middle", transform=turn)
