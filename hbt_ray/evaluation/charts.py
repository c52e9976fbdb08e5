"""Charts of a report as marks on an SVG drawing: axes, their ticks, and where every mark goes.

charts.html draws them. Marks carry a class, not a colour, so that a chart follows its page from light to dark; text is
text, and what a mark stands for is its title, which a browser shows on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 360, 250  # pixels; as wide as a telephone's page, three side by side on a desk
WIDE = 760
CHARACTER_WIDTH = 6.6  # of a label, in pixels
MOST_TICKS = 6
PADDING = 0.06  # share of an axis left empty at each end
SERIES_COLOURS = 8  # that charts_style.html tells apart; further series are dashed


class Margins(NamedTuple):
    """Pixels between the plot and the edges of the drawing."""

    left: float = 52
    right: float = 14
    top: float = 10
    bottom: float = 46


MARGINS = Margins()


class Tick(NamedTuple):
    """A tick in pixels; `title` is the whole of a label that was too long."""

    place: float
    text: str
    title: str = ""


class Mark(NamedTuple):
    """A path (`path`), a dot of a radius, or a text anchored at its `start`, `middle` or `end`; places in pixels."""

    kind: str
    css: str
    title: str = ""
    path: str = ""
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    text: str = ""
    anchor: str = "middle"
    style: str = ""


def tick_text(value: float) -> str:
    """A round number as short as it can be."""
    return f"{value:,.6g}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs along one side: numbers from `low` to `high`, or `names` at 0, 1, 2 ...

    `high` may be below `low`, which turns the axis round.
    """

    label: str
    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()
    text: Callable[[float], str] = tick_text

    def share(self, value: float) -> float:
        """Place of a value from 0 (low) to 1 (high)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def clipped(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, min(self.low, self.high)), max(self.low, self.high))

    def ticks(self) -> list[float]:
        """Round values between the ends, or the places of the names."""
        if self.names:
            return [float(i) for i in range(len(self.names))]
        low, high = sorted((self.low, self.high))
        even = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        locators = [LogLocator(subs=(1.0, 2.0, 5.0)), LogLocator(), even] if self.log else [even]
        found = [[float(tick) for tick in one.tick_values(low, high) if low <= tick <= high] for one in locators]
        return next((ticks for ticks in found if 2 <= len(ticks) <= MOST_TICKS), found[-1])


def axis_of(label: str, values: Iterable[float], *, log: bool = False) -> Axis:
    """An axis that holds all values, with some room at both ends."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if log:
        room = (high / low) ** PADDING if high > low else 2.0
        return Axis(label, low / room, high * room, log=True)
    room = (high - low) * PADDING if high > low else abs(low) * PADDING or 1.0
    return Axis(label, low - room, high + room)


def named_axis(label: str, names: Sequence[str], *, downwards: bool = False) -> Axis:
    """An axis of names; `downwards` puts the first on top."""
    ends = (len(names) - 0.5, -0.5) if downwards else (-0.5, len(names) - 0.5)
    return Axis(label, *ends, names=tuple(names))


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot of a chart: two axes on a drawing of `width` by `height` pixels."""

    x: Axis
    y: Axis
    width: float = WIDTH
    height: float = HEIGHT
    margins: Margins = MARGINS

    @property
    def right(self) -> float:
        """Pixels from the left edge of the drawing to the right end of the plot."""
        return self.width - self.margins.right

    @property
    def bottom(self) -> float:
        """Pixels from the top of the drawing to the lower end of the plot."""
        return self.height - self.margins.bottom

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        across = self.margins.left + self.x.share(x) * (self.right - self.margins.left)
        down = self.bottom - self.y.share(y) * (self.bottom - self.margins.top)
        return round(across, 1), round(down, 1)

    @property
    def x_ticks(self) -> list[Tick]:
        """Ticks below the plot; a name gets the room up to the next one."""
        room = (self.right - self.margins.left) / max(len(self.x.names), 1)
        return [self._tick(self.x, tick, self.place(tick, self.y.low)[0], room) for tick in self.x.ticks()]

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks left of the plot; a name gets the margin."""
        room = self.margins.left - 8
        return [self._tick(self.y, tick, self.place(self.x.low, tick)[1], room) for tick in self.y.ticks()]

    def _tick(self, axis: Axis, tick: float, place: float, room: float) -> Tick:
        if not axis.names:
            return Tick(place, axis.text(tick))
        name = axis.names[int(tick)]
        short = shortened(name, room)
        return Tick(place, short, name if short != name else "")


class Chart(NamedTuple):
    """A chart as charts.html draws it: heading, what it shows in words, plot and marks in the order of drawing."""

    caption: str
    description: str
    frame: Frame
    marks: list[Mark]
    grid: bool = True


def shortened(text: str, room: float) -> str:
    """A text cut to the characters that fit into `room` pixels, at least three."""
    characters = max(int(room / CHARACTER_WIDTH), 3)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def name_margins(names: Iterable[str], most: float = 130) -> Margins:
    """Margins with room for names on the left, up to `most` pixels."""
    longest = max(map(len, names), default=0)
    return Margins(left=min(longest * CHARACTER_WIDTH + 12, most))


def line(frame: Frame, points: Iterable[tuple[float, float]], css: str, title: str = "", style: str = "") -> Mark:
    """A line through points of the data."""
    places = [f"{across:g} {down:g}" for across, down in (frame.place(x, y) for x, y in points)]
    return Mark("path", css, title, path="M" + "L".join(places), style=style)


def area(
    frame: Frame, rings: Iterable[Iterable[tuple[float, float]]], css: str, title: str = "", style: str = ""
) -> Mark:
    """A filled area within closed rings of points; a ring inside another is a hole."""
    paths = (line(frame, ring, "").path + "Z" for ring in rings)
    return Mark("path", css, title, path="".join(paths), style=style)


def dot(frame: Frame, x: float, y: float, css: str, title: str = "", *, radius: float = 4.5, style: str = "") -> Mark:
    """A dot at a point of the data."""
    across, down = frame.place(x, y)
    return Mark("dot", css, title, x=across, y=down, radius=radius, style=style)


def step_points(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The corners of a step function that takes each value from its place on, up to `end`."""
    starts = [x for x, _ in points]
    return [corner for (x, y), stop in zip(points, [*starts[1:], end], strict=True) for corner in ((x, y), (stop, y))]


def series_style(index: int) -> str:
    """CSS that gives the n-th series (from 0) its colour, and dashes where the colours are used up."""
    dashes = index // SERIES_COLOURS
    return f"--series: var(--series-{index % SERIES_COLOURS})" + (
        f"; stroke-dasharray: {7 - dashes} 3" if dashes else ""
    )
