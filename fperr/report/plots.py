"""Draws the figures of a report: data frame in, matplotlib Figure out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fperr.caller_state import in_neutral_state
from fperr.report.judging import only_ties
from fperr.report.panels import (
    Strip,
    draw_bound,
    draw_strip,
    error_strip,
    gain_strip,
    share_strip,
)
from fperr.report.style import STAGES, legend_below, ordered
from fperr.report.verdict import DEFAULT_THRESHOLDS, Thresholds

_WIDTH = 9.0  # inches: 900 pixels at 100 to the inch, as wide as a page of text shows it
_MOST_COLUMNS = 3


@dataclass(frozen=True)
class Plots:
    """The figures of one report. Scenarios that differ by the sign of the gradient are drawn once.

    In the figures by format, a hollow dot is a gradient that rounding moved across an exact tie of
    a ReLU or a pooling, and a cross is one that is exactly zero. Numbers count the crosses.

    Attributes:
        frame: Rows of the report.
        thresholds: Thresholds of the verdict: they are drawn as dashed lines.
    """

    frame: pd.DataFrame
    thresholds: Thresholds = DEFAULT_THRESHOLDS

    @in_neutral_state
    def step_gain(self) -> Figure:
        """What a step along the computed gradient's signs gains, one panel for each scenario.

        Drawn are the shares of what the exact gradient's signs gain, to first order.
        """
        rows = by_scenario(self.frame, "step_gain")
        return _strips(
            rows,
            "Step gain of the computed gradient",
            strip_of(self.frame, "step_gain", self.thresholds),
        )

    @in_neutral_state
    def relative_error(self) -> Figure:
        """The relative error of the gradient, by format and loss, one panel for each scenario.

        A dotted line is the unit roundoff u of its format.
        """
        rows = by_scenario(self.frame, "delta")
        return _strips(
            rows, "Error of the computed gradient", strip_of(self.frame, "delta", self.thresholds)
        )

    @in_neutral_state
    def sign_errors(self) -> Figure:
        """The share of wrong signs, by format and loss, one panel for each scenario."""
        rows = by_scenario(self.frame, "sign_error_rate")
        return _strips(
            rows,
            "Wrong signs of the gradient",
            strip_of(self.frame, "sign_error_rate", self.thresholds),
        )

    @in_neutral_state
    def stages(self) -> Figure:
        """The size of each stage of the error, by format, one panel for each loss."""
        rows = by_stage(self.frame)
        title = "Where the error of the gradient arises"
        return _strips(
            rows, title, strip_of(self.frame, "stages", self.thresholds), legend_title="stage"
        )

    @in_neutral_state
    def bounds(self) -> Figure:
        """The loss stage against the proved bound on it, one panel for each format.

        Errors below the scale, 0 among them, are drawn at its lower end.
        """
        bounded = with_bounds(self.frame)
        hues = ordered(bounded["loss"])
        panels = {}
        for name in dict.fromkeys(bounded["format"]):
            rows = bounded[bounded["format"] == name]
            above = int((rows["stage_loss"] > rows["stage_loss_bound"]).sum())
            panels[f"{name}: {above} of {len(rows)} above"] = rows
        return _grid(
            panels,
            lambda axis, rows: draw_bound(axis, rows, hues),
            "Loss stage against its bound",
            hues,
            "loss",
        )


def strip_of(frame: pd.DataFrame, column: str, thresholds: Thresholds) -> Strip:
    """How the dots of a column are drawn.

    Args:
        frame: Rows of a report.
        column: A column of the report, or `"stages"`.
        thresholds: Thresholds of the verdict.
    """
    if column == "step_gain":
        return gain_strip(frame[column].dropna(), thresholds.step_gain)
    if column == "sign_error_rate":
        return share_strip(thresholds.sign_error_rate)
    if column == "stages":
        return error_strip("‖stage‖₂ / ‖g‖₂", by_stage(frame)["value"])
    label = "relative error δ = ‖ĝ − g‖₂ / ‖g‖₂"
    return error_strip(label, frame[column].dropna(), thresholds.delta)


def with_bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a loss stage and a bound on it."""
    bounded = frame[~frame["is_sign_twin"] & frame["stage_loss_bound"].notna()]
    return bounded[bounded["stage_loss"].notna()]


def by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """The sizes of the stages as rows of `draw_strip`, with one panel for each loss."""
    independent = frame[~frame["is_sign_twin"]]
    columns = [f"stage_{name}" for name in STAGES]
    long = independent.melt(["network", "loss", "format"], columns, "hue", "value")
    long["hue"] = long["hue"].str.removeprefix("stage_")
    positive = long[long["value"] > 0]  # a stage without an error needs no colour
    return positive.rename(columns={"loss": "panel"}).assign(is_tie=False, is_zero=False)


def by_scenario(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The values of a column as rows of `draw_strip`, with one panel for each scenario."""
    independent = frame[~frame["is_sign_twin"]]
    copied = set(frame[frame["is_sign_twin"]]["scenario"])
    titles = {}
    for name in independent["scenario"].unique():
        note = f"\n(and {twin_of(name).replace('_', ', ')})" if twin_of(name) in copied else ""
        titles[name] = f"{name.replace('_', ', ')}{note}"
    return pd.DataFrame(
        {
            "network": independent["network"],
            "panel": independent["scenario"].map(titles),
            "scenario": independent["scenario"],
            "format": independent["format"],
            "is_tie": only_ties(independent),
            "is_zero": independent["is_dead"].fillna(False).astype(bool),
            "hue": independent["loss"],
            "value": independent[column],
        }
    )


def twin_of(scenario: str) -> str:
    """The scenario whose gradient is that of `scenario` with the sign changed, in two classes."""
    kind, success = scenario.split("_")
    other = "targeted" if kind == "untargeted" else "untargeted"
    return f"{other}_{'unsuccessful' if success == 'successful' else 'successful'}"


def _strips(frame: pd.DataFrame, title: str, strip: Strip, legend_title: str = "loss") -> Figure:
    """A grid of panels, with one dot for each row.

    Args:
        frame: Data frame with the columns `network` and `panel`, and those of `draw_strip`.
        title: Title of the figure.
        strip: What the dots show.
        legend_title: Title of the legend.
    """
    drawn = frame[frame["value"].notna() & ((frame["value"] > 0) | (not strip.is_log))]
    networks, panels, formats = (
        list(dict.fromkeys(drawn[name])) for name in ("network", "panel", "format")
    )
    hues = ordered(drawn["hue"])
    rows_of = {
        (f"{network}\n{panel}" if len(networks) > 1 else panel): drawn[
            (drawn["panel"] == panel) & (drawn["network"] == network)
        ]
        for network in networks
        for panel in panels
    }
    columns = len(panels) if len(networks) > 1 and len(panels) <= _MOST_COLUMNS else None
    return _grid(
        rows_of,
        lambda axis, rows: draw_strip(axis, rows, formats, hues, strip),
        title,
        hues,
        legend_title,
        columns,
    )


def _grid(
    panels: dict[str, pd.DataFrame],
    draw: Callable[[Axes, pd.DataFrame], None],
    title: str,
    hues: list[str],
    legend_title: str,
    columns: int | None = None,
) -> Figure:
    """A figure of panels, with one legend below them.

    Args:
        panels: Rows by the title of the panel.
        draw: Draws the rows of a panel.
        title: Title of the figure.
        hues: Names in the legend.
        legend_title: Title of the legend.
        columns: Number of columns; at most three if it is not given.
    """
    count = max(1, len(panels))
    width = columns or (2 if count in (2, 4) else min(count, _MOST_COLUMNS))
    lines = math.ceil(count / width)
    size = (_WIDTH if width > 1 else _WIDTH / 2 + 1, 3.2 * lines + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, width, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, (heading, rows) in zip(grid, panels.items(), strict=False):
        draw(axis, rows)
        axis.set_title(heading, fontsize="medium", parse_math=False)  # a name may hold dollars
    for axis in grid[len(panels) :]:
        axis.remove()
    for axis in figure.axes:
        axis.label_outer()
    legend_below(figure, hues, legend_title)
    figure.suptitle(title)
    return figure
