"""The pictures of the report page: panels with one legend, and a caption that says what they show.

Each panel is an image of its own, so that the browser arranges them by the width of the page.
"""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fperr.report.numbers import joined, number
from fperr.report.panels import draw_bound, draw_strip
from fperr.report.plots import by_scenario, by_stage, strip_of, twin_of, with_bounds
from fperr.report.style import STAGES, colours, display_name, ordered, picture
from fperr.report.verdict import SCENARIO_WORDS, Thresholds

_SIZE = (4.5, 3.3)  # inches; shown 440 pixels wide, which leaves letters of 13 pixels
_DPI = 200  # two dots for each pixel
_MOST_NAMED = 6  # of losses in formats, in a caption
_CAPTIONS = {
    "step_gain": (
        "What a step along the computed gradient gains",
        "One dot is one image: what a step along the signs of the computed gradient gains, as a "
        "share of what the exact gradient's signs gain. 1 is perfect; below the dashed line a "
        "gradient counts as weak.",
    ),
    "delta": (
        "How wrong the gradient is",
        "One dot is one image: the length of the gradient's error over the length of the exact "
        "gradient. At 10⁰ little or nothing of the gradient is left. A dotted line is the unit "
        "roundoff u of its format, the largest relative error of rounding one number.",
    ),
    "sign_error_rate": (
        "How many signs are wrong",
        "One dot is one image: the share of pixels whose gradient sign is wrong or was computed "
        "as zero. An ℓ∞ attack moves every pixel by its sign. At 0.5 the signs are as good as "
        "random.",
    ),
    "stages": (
        "Where the error arises",
        "One dot is one image and one stage of the computation, in units of the exact gradient's "
        "length. The stages add up to the whole error, so that the highest one decides. Another "
        "loss changes the loss stage; the others belong to the network in that format, and a loss "
        "scale changes the backward stage where its numbers underflow. A dotted line is the unit "
        "roundoff u. What is below 10⁻¹⁸ is not drawn.",
    ),
    "bounds": (
        "What the loss can do at worst",
        "One dot is one image: the error that the loss stage made, and the proved bound on it. "
        "No dot may lie above the line. Where dots lie far below it, the bound allows for worse "
        "than happened. Losses without a bound (C&W, DLR) are left out.",
    ),
}
_ZEROS = " A cross is a gradient that is exactly zero; the number beside crosses counts them."
_TIES = " A hollow dot: rounding broke an exact tie of a ReLU or a pooling, which no loss mends."


@dataclass(frozen=True, slots=True)
class Image:
    """One panel.

    Attributes:
        heading: What its dots have in common, in words.
        png: The image, encoded in base64.
        alt: The image in words, with its medians.
    """

    heading: str
    png: str
    alt: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A row of panels with one legend.

    Attributes:
        title: Its heading.
        caption: What it shows, and what was found.
        legend: Names and their colours.
        images: Its panels.
        is_folded: Whether the page folds it.
    """

    title: str
    caption: str
    legend: tuple[tuple[str, str], ...]
    images: tuple[Image, ...]
    is_folded: bool


def pictures(
    name: str, frame: pd.DataFrame, thresholds: Thresholds, *, is_observed: bool
) -> list[Picture]:
    """The pictures of one network.

    Args:
        name: Name of the network.
        frame: Its rows.
        thresholds: Thresholds of the verdicts: they are drawn.
        is_observed: Whether the images were classified by labels or targets that were given.
    """
    drawn = [
        _of_scenarios(name, frame, thresholds, column, is_observed=is_observed)
        for column in ("step_gain", "delta", "sign_error_rate")
    ]
    drawn.append(_of_stages(name, frame, thresholds))
    if len(with_bounds(frame)):
        drawn.append(_of_bounds(name, frame))
    return [each for each in drawn if each.images]


def _of_scenarios(
    name: str, frame: pd.DataFrame, thresholds: Thresholds, column: str, *, is_observed: bool
) -> Picture:
    """Panels by scenario."""
    rows, strip = by_scenario(frame, column), strip_of(frame, column, thresholds)
    title, caption = _CAPTIONS[column]
    formats, hues = list(dict.fromkeys(rows["format"])), ordered(rows["hue"])
    twins = set(frame[frame["is_sign_twin"]]["scenario"])
    images = []
    for scenario, panel in rows.groupby("scenario", sort=False):
        samples = frame[frame["scenario"] == scenario]["sample"].nunique()
        heading = _heading(str(scenario), samples, twins, is_observed=is_observed)
        images.append(
            Image(
                heading,
                _png(partial(draw_strip, rows=panel, formats=formats, hues=hues, strip=strip)),
                f"{title}, {name}, {heading}: medians {_medians(panel)}.{_zeros_in(panel)}",
            )
        )
    shown = rows[rows["value"].notna()]
    caption += _ZEROS if shown["is_zero"].any() else ""
    caption += _TIES if shown["is_tie"].any() else ""
    finding = _below(shown, thresholds) if column == "step_gain" else _extremes(shown)
    is_folded = column == "sign_error_rate"
    return Picture(title, f"{caption} {finding}", _legend(hues), tuple(images), is_folded)


def _of_stages(name: str, frame: pd.DataFrame, thresholds: Thresholds) -> Picture:
    """Panels by loss."""
    rows, strip = by_stage(frame), strip_of(frame, "stages", thresholds)
    title, caption = _CAPTIONS["stages"]
    formats, hues = list(dict.fromkeys(frame["format"])), ordered(rows["hue"])
    independent = frame[~frame["is_sign_twin"]]
    images = [
        Image(
            f"{display_name(str(loss))} ({loss})",
            _png(partial(draw_strip, rows=panel, formats=formats, hues=hues, strip=strip)),
            f"Size of the error's stages for {loss} on {name}, medians. "
            f"{_stage_medians(independent[independent['loss'] == loss])}.",
        )
        for loss, panel in rows.groupby("panel", sort=False)
    ]
    return Picture(title, caption, _legend(hues), tuple(images), is_folded=True)


def _of_bounds(name: str, frame: pd.DataFrame) -> Picture:
    """Panels by format."""
    bounded = with_bounds(frame)
    title, caption = _CAPTIONS["bounds"]
    hues = ordered(bounded["loss"])
    images = []
    for fmt, rows in bounded.groupby("format", sort=False):
        above = int((rows["stage_loss"] > rows["stage_loss_bound"]).sum())
        medians = rows.groupby("loss", sort=False)[["stage_loss", "stage_loss_bound"]].median()
        words = "; ".join(
            f"{loss}: measured {number(measured, 1)}, bound {number(bound, 1)}"
            for loss, measured, bound in medians.itertuples()
        )
        images.append(
            Image(
                f"{fmt}: {above} of {len(rows)} above the line",
                _png(partial(draw_bound, rows=rows, hues=hues)),
                f"Error of the loss stage on {name} in {fmt}, medians. {words}.",
            )
        )
    return Picture(title, caption, _legend(hues), tuple(images), is_folded=True)


def _heading(scenario: str, samples: int, twins: set[str], *, is_observed: bool) -> str:
    """What the images of a scenario have in common."""
    words = SCENARIO_WORDS[scenario]
    heading = f"{words[:1].upper()}{words[1:]}: {samples} image{'s' * (samples != 1)}"
    if is_observed and scenario.endswith("_successful"):
        heading += (
            ", which the network takes for that class without an attack"
            if (scenario.startswith("targeted"))
            else ", which the network misclassifies without an attack"
        )
    if twin_of(scenario) in twins:
        heading += f"; with the sign changed also {SCENARIO_WORDS[twin_of(scenario)]}"
    return heading


def _medians(rows: pd.DataFrame) -> str:
    medians = rows.groupby(["hue", "format"], sort=False)["value"].median()
    return ", ".join(
        f"{loss} in {fmt} {'not measured' if pd.isna(value) else number(value)}"
        for (loss, fmt), value in medians.items()
    )


def _zeros_in(rows: pd.DataFrame) -> str:
    """How many gradients of the panel are exactly zero, in words."""
    zeros = rows[rows["is_zero"]].groupby(["hue", "format"], sort=False).size()
    words = [f"{count} of {loss} in {fmt}" for (loss, fmt), count in zeros.items()]
    return f" Exactly zero: {joined(words)}." if words else ""


def _stage_medians(rows: pd.DataFrame) -> str:
    return "; ".join(
        f"{fmt}: "
        + ", ".join(
            f"{stage} {number(group[f'stage_{stage}'].dropna().median(), 1)}" for stage in STAGES
        )
        for fmt, group in rows.groupby("format", sort=False)
    )


def _below(rows: pd.DataFrame, thresholds: Thresholds) -> str:
    """How many dots lie below the dashed line."""
    words = [
        f"{count} of {len(group)} of {loss} in {fmt}"
        for (loss, fmt), group in rows.groupby(["hue", "format"], sort=False)
        if (count := int((group["value"] < thresholds.step_gain).sum()))
    ]
    if not words:
        return "Here no gradient lies below the line."
    return f"Here below the line: {_first(words)}."


def _extremes(rows: pd.DataFrame) -> str:
    """The largest and the smallest median."""
    medians = rows.groupby(["hue", "format"], sort=False)["value"].median().dropna()
    if len(medians) < 2:
        return ""
    (worst, worst_format), (best, best_format) = medians.idxmax(), medians.idxmin()
    return (
        f"Here the largest median is that of {worst} in {worst_format}, {number(medians.max())}, "
        f"and the smallest that of {best} in {best_format}, {number(medians.min())}."
    )


def _first(words: list[str]) -> str:
    """An enumeration that is cut where it gets long."""
    if len(words) <= _MOST_NAMED:
        return joined(words)
    return f"{', '.join(words[:_MOST_NAMED])} and {len(words) - _MOST_NAMED} more pairs"


def _legend(hues: Iterable[str]) -> tuple[tuple[str, str], ...]:
    names = list(hues)
    return tuple((display_name(name), to_hex(c)) for name, c in colours(names).items())


def _png(draw: Callable[[Axes], None]) -> str:
    """A panel as a PNG image in Base64, for a `data:` address; its ground is transparent."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.subplots())
    content = picture(figure, dpi=_DPI, transparent=True)
    return base64.b64encode(content).decode("ascii")
