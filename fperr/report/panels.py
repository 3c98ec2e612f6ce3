"""Draws one panel of a report's figures: dots by format and loss, and lines to read them by."""

import math
from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from fperr.formats import FORMATS
from fperr.report.numbers import typeset
from fperr.report.style import colours

_DODGED = 0.8  # the share of a format's column that seaborn divides among the hues
_GREY = "#6b7078"
_TIE, _ZERO = "$\\circ$", "$\\times$"
# the same scale in every figure; errors below float64's unit roundoff (1e-16) are of no interest
LOG_LIMITS = (1e-18, 1e2)  # the upper limit is raised for larger errors
_SHARE_LIMITS = (-0.04, 1.12)  # [0, 1] with room for the dots, and above them for counts
_GAIN_LIMITS = (-0.12, 1.08)  # the lower limit is lowered for negative gains
BOUND_LIMITS = (1e-20, 1e4)


@dataclass(frozen=True, slots=True)
class Strip:
    """What the dots of a panel show.

    Attributes:
        label: Label of the vertical axis.
        limits: Ends of the vertical axis.
        is_log: Use a logarithmic scale; values that are not positive are left out.
        threshold: Where a verdict's threshold is drawn, or None.
        below: Write the counts of zero gradients below their crosses.
    """

    label: str
    limits: tuple[float, float]
    is_log: bool
    threshold: float | None = None
    below: bool = False


def error_strip(label: str, values: "pd.Series[float]", threshold: float | None = None) -> Strip:
    """A logarithmic strip for sizes of errors.

    Args:
        label: Label of the vertical axis.
        values: Every value that is drawn.
        threshold: Largest error that a verdict allows, if any.
    """
    finite = values[values < math.inf]
    top = max(LOG_LIMITS[1], 3 * finite.max()) if len(finite) else LOG_LIMITS[1]
    return Strip(label, (LOG_LIMITS[0], top), True, threshold)


def gain_strip(values: "pd.Series[float]", threshold: float) -> Strip:
    """A strip for step gains.

    Args:
        values: Every value that is drawn.
        threshold: Smallest step gain that a verdict allows.
    """
    least = values.min() - 0.12 if len(values) else 0.0
    limits = (min(_GAIN_LIMITS[0], least), _GAIN_LIMITS[1])
    return Strip("step gain ⟨g, sign ĝ⟩ / ‖g‖₁", limits, False, threshold, below=True)


def share_strip(threshold: float | None) -> Strip:
    """A strip for shares of wrong signs.

    Args:
        threshold: Largest share that a verdict allows, if any.
    """
    return Strip("share of wrong signs", _SHARE_LIMITS, False, threshold)


def draw_strip(
    axis: Axes, rows: pd.DataFrame, formats: list[str], hues: list[str], strip: Strip
) -> None:
    """Draw the dots of one panel, the lines to read them by, and the counts of zero gradients.

    Args:
        axis: Where to draw.
        rows: The columns `format`, `hue`, `value`, `is_tie` (drawn hollow) and `is_zero` (drawn as
            crosses, with their number).
        formats: Formats from left to right.
        hues: Losses, or stages, of each format from left to right.
        strip: What the dots show.
    """
    drawn = rows[rows["value"].notna() & ((rows["value"] > 0) | (not strip.is_log))]
    is_zero, is_tie = drawn["is_zero"], drawn["is_tie"] & ~drawn["is_zero"]
    for marked, marker, size in (
        (drawn[~is_tie & ~is_zero], "o", 3.5),
        (drawn[is_tie], _TIE, 6),
        (drawn[is_zero], _ZERO, 6),
    ):
        sns.stripplot(
            marked,
            x="format",
            y="value",
            hue="hue",
            order=formats,
            hue_order=hues,
            palette=colours(hues),
            dodge=True,
            jitter=0.2,
            size=size,
            marker=marker,
            alpha=0.7,
            log_scale=(False, strip.is_log),
            legend=False,
            ax=axis,
        )
    axis.set(xlabel="", ylabel=strip.label, ylim=strip.limits)
    axis.set_xlim(-0.5, len(formats) - 0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if strip.threshold is not None:
        _draw_threshold(axis, strip.threshold)
    if strip.is_log:
        _draw_unit_roundoffs(axis, formats)
    _write_counts(axis, drawn[is_zero], formats, hues, strip.below)


def draw_bound(axis: Axes, rows: pd.DataFrame, hues: list[str]) -> None:
    """Draw the loss stage against the proved bound on it.

    Errors below the scale, 0 among them, are drawn at its lower end.

    Args:
        axis: Where to draw.
        rows: Rows of a report with a loss stage and a bound.
        hues: Losses.
    """
    values = rows[["stage_loss", "stage_loss_bound"]].clip(*BOUND_LIMITS)
    sns.scatterplot(
        x=values["stage_loss_bound"],
        y=values["stage_loss"],
        hue=rows["loss"],
        hue_order=hues,
        palette=colours(hues),
        s=14,
        alpha=0.7,
        linewidth=0,
        legend=False,
        ax=axis,
    )
    axis.plot(BOUND_LIMITS, BOUND_LIMITS, color="black", linewidth=1)
    axis.set(xscale="log", yscale="log", xlim=BOUND_LIMITS, ylim=BOUND_LIMITS)
    axis.set(xlabel="proved bound", ylabel="loss stage ‖J̃ᵀ(v̂ − v)‖₂ / ‖g‖₂")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_threshold(axis: Axes, threshold: float) -> None:
    """A dashed line at the threshold of the verdict, with its value."""
    axis.axhline(threshold, color="black", linewidth=1, linestyle=(0, (5, 2)), zorder=1.5)
    words = typeset(f"threshold {threshold:g}")
    axis.annotate(
        words, (0.995, threshold), (0, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", fontsize="x-small",
    )  # fmt: skip


def _draw_unit_roundoffs(axis: Axes, formats: list[str]) -> None:
    """A dotted line at the unit roundoff of each format, in the format's column."""
    for column, name in enumerate(formats):
        if name not in FORMATS:
            continue
        u = FORMATS[name].unit_roundoff
        left, right = column - 0.48, column + 0.48
        axis.plot([left, right], [u, u], color=_GREY, linewidth=1.2, linestyle=(0, (1, 1)))
        axis.annotate(
            "u", (right, u), (-1, 1), textcoords="offset points", ha="right", va="bottom",
            fontsize="small", fontstyle="italic", color=_GREY,
        )  # fmt: skip


def _write_counts(
    axis: Axes, zeros: pd.DataFrame, formats: list[str], hues: list[str], below: bool
) -> None:
    """The number of gradients that are exactly zero, beside their crosses."""
    width = _DODGED / max(1, len(hues))
    for (fmt, hue), group in zeros.groupby(["format", "hue"], sort=False):
        offset = (hues.index(str(hue)) - (len(hues) - 1) / 2) * width
        place = formats.index(str(fmt)) + offset, group["value"].median()
        axis.annotate(
            str(len(group)), place, (0, -5 if below else 5), textcoords="offset points",
            ha="center", va="top" if below else "bottom", fontsize="small", fontweight="bold",
            color=colours(hues)[str(hue)],
        )  # fmt: skip
