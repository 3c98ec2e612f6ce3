"""Renders the report page: one self-contained HTML file, for readers new to the subject."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from fperr.losses import LOSSES_BY_NAME
from fperr.reasons import Tally, reasons, tally
from fperr.report.plots import Plots
from fperr.report.style import STAGES
from fperr.report.summary import advice, certainties, headline, overview, short, summarise
from fperr.report.verdict import State, Thresholds, is_judged, judge

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("fperr.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)
_SHORT: dict[State, str] = {
    "trustworthy": "✓ trust",
    "do not trust": "✗ {} of {} dead or weak",
    "cannot tell": "? {} of {} dead or weak",
    "not measured": "not measured",
}
# classes of the page's style
_CLASSES: dict[State, str] = {
    "trustworthy": "good",
    "do not trust": "bad",
    "cannot tell": "open",
    "not measured": "open",
}
_CAPTIONS = {
    "relative_error": (
        "How wrong the gradient is",
        "One dot is one image. Lower is better: at 10⁰ the error is as long as the gradient, so "
        "that little or nothing of it is left; at the bottom only the format's own precision is "
        "missing. Dots of one format at very different heights mean that the loss, "
        "and not the format, decides. Hollow: rounding broke an exact tie of a ReLU or a pooling, "
        "which no loss mends.",
    ),
    "sign_errors": (
        "How many signs are wrong",
        "One dot is one image: the share of pixels whose gradient sign is wrong or was computed "
        "as zero. An ℓ∞ attack moves every pixel by its sign. At 0.5 the signs are as good as "
        "random, at 1 the gradient was computed as zero everywhere.",
    ),
    "stages": (
        "Where the error arises",
        "One dot is one image and one stage of the computation. The highest stage is the one to "
        "mend: a large loss stage is mended by another loss or scale, a large backward stage by "
        "a loss scale or a wider format, cast, constants and forward by a wider format only. "
        "What is below 10⁻¹⁸ is not drawn.",
    ),
    "bounds": (
        "What the loss can do at worst",
        "One dot is one image: the error that the loss stage made, and the proved bound on it. No "
        "dot may lie above the line. Dots far below it: the bound allows for worse than happened. "
        "Losses without a bound (C&W, DLR) are left out.",
    ),
}


@dataclass(frozen=True, slots=True)
class AttributionSection:
    """What the page shows of an attribution, see `fperr.attribute`.

    Attributes:
        sentence: The result in a sentence.
        remarks: Further sentences.
        kind: The attack in words.
        png: The figure, encoded in base64.
        alt: The figure in words.
        columns, rows: A table of the parts.
    """

    sentence: str
    remarks: Sequence[str]
    kind: str
    png: str
    alt: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def attribution_page(section: AttributionSection) -> str:
    """The HTML page of an attribution alone."""
    return _ENVIRONMENT.get_template("attribution_page.html.j2").render(attribution=section)


def page(
    frame: pd.DataFrame,
    provenance: Mapping[str, Any],
    thresholds: Thresholds,
    attributions: Mapping[str, AttributionSection],
) -> str:
    """The HTML page of a report.

    Args:
        frame: Rows of the report.
        provenance: Provenance by network.
        thresholds: Largest errors and shares of failures that the verdicts allow.
        attributions: Attributions by network, each a section.
    """
    first = next(iter(provenance.values()))
    template = _ENVIRONMENT.get_template("page.html.j2")
    return template.render(
        digits=first["settings"]["digits"],
        networks=[
            _network(name, frame[frame["network"] == name], details, thresholds)
            for name, details in provenance.items()
        ],
        thresholds=thresholds,
        attributions=attributions,
        tables=_tables(frame, thresholds),
    )


def _network(
    name: str, frame: pd.DataFrame, provenance: Mapping[str, Any], thresholds: Thresholds
) -> dict[str, Any]:
    """What the template shows of one network."""
    independent = frame[~frame["is_sign_twin"]]
    return {
        "name": name,
        "samples": frame["sample"].nunique(),
        "classes": provenance["model"]["classes"],
        "interrupted": provenance["interrupted"],
        "time_is_up": provenance["time_is_up"],
        "margin": short(frame["margin"].median()) if frame["margin"].notna().any() else None,
        "verdicts": [
            _verdict(str(loss), str(fmt), rows, thresholds)
            for (loss, fmt), rows in independent.groupby(["loss", "format"], sort=False)
        ],
        "advice": advice(independent, thresholds),
        "headline": headline(frame),
        "missing": _missing(independent),
        "certainties": certainties(independent),
        "rows": len(independent),
        "grid": _grid(independent, thresholds),
        "figures": _figures(name, frame),
        "provenance": json.dumps(provenance, indent=2),
    }


def _missing(frame: pd.DataFrame) -> list[tuple[Tally, bool]]:
    """The reasons of rows without a relative error, and whether those rows count as failing."""
    judged = is_judged(frame)
    fails = judged & frame["delta"].isna()
    return [
        (group, is_failing)
        for rows, is_failing in ((frame[~judged], False), (frame[fails], True))
        for group in tally(reasons(rows))
    ]


def _grid(frame: pd.DataFrame, thresholds: Thresholds) -> dict[str, Any]:
    """The verdicts at a glance: a line for each loss, a column for each format."""
    formats = [str(f) for f in frame["format"].unique()]
    lines = []
    for loss, rows in frame.groupby("loss", sort=False):
        verdicts = [judge(rows[rows["format"] == fmt], thresholds) for fmt in formats]
        cells = [(_SHORT[v.state].format(v.failing, v.rows), _CLASSES[v.state]) for v in verdicts]
        lines.append({"loss": str(loss), "cells": cells})
    return {"formats": formats, "lines": lines}


def _in_full(name: str) -> str:
    """A loss by its full name and its name; those with a parameter by their name alone."""
    loss = LOSSES_BY_NAME.get(name)
    return name if loss is None else f"{loss.full_name or loss.display_name} ({name})"


def _verdict(loss: str, fmt: str, rows: pd.DataFrame, thresholds: Thresholds) -> dict[str, Any]:
    """What the template shows of one loss in one format."""
    verdict = judge(rows, thresholds)
    words = verdict.sentence.partition(": ")[2]
    return {
        "loss": _in_full(loss),
        "format": fmt,
        "state": verdict.state,
        "kind": _CLASSES[verdict.state],
        "words": f"{words[:1].upper()}{words[1:]}.",
    }


def _figures(name: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The figures, one image for each panel: the browser arranges them by the width of the page."""
    scenarios = frame[~frame["is_sign_twin"]]["scenario"].unique()
    groups = {
        "relative_error": [("scenario", s) for s in scenarios],
        "sign_errors": [("scenario", s) for s in scenarios],
        "stages": [("loss", loss) for loss in frame["loss"].unique()],
    }
    bounded = frame[frame["stage_loss_bound"].notna()]
    if len(bounded):
        groups["bounds"] = [("format", fmt) for fmt in bounded["format"].unique()]
    figures = []
    for kind, panels in groups.items():
        title, caption = _CAPTIONS[kind]
        images = []
        for column, value in panels:
            rows = frame[frame[column] == value]
            figure = getattr(Plots(rows), kind)()
            images.append({"png": _png(figure), "alt": _alt(kind, name, value, rows)})
        figures.append({"title": title, "caption": caption, "images": images})
    return figures


def _alt(kind: str, name: str, panel: str, rows: pd.DataFrame) -> str:
    """The alternative text of an image: medians by loss (or stage) and format."""
    if kind == "stages":
        stage_medians = [
            f"{fmt}: "
            + ", ".join(
                f"{stage} {group[f'stage_{stage}'].dropna().median():.1g}" for stage in STAGES
            )
            for fmt, group in rows.groupby("format", sort=False)
        ]
        medians_text = "; ".join(stage_medians)
        return f"Size of the error's stages for {panel} on {name}, medians. {medians_text}."
    if kind == "bounds":
        bounded = rows[rows["stage_loss_bound"].notna()].groupby("loss", sort=False)
        medians = bounded[["stage_loss", "stage_loss_bound"]].median()
        medians_text = "; ".join(
            f"{loss}: measured {measured:.1g}, bound {bound:.1g}"
            for loss, measured, bound in medians.itertuples()
        )
        return f"Error of the loss stage on {name} in {panel}, medians. {medians_text}."
    column = "delta" if kind == "relative_error" else "sign_error_rate"
    medians = rows.groupby(["loss", "format"], sort=False)[column].median()
    title = "Relative error of the gradient" if kind == "relative_error" else "Share of wrong signs"
    medians_text = ", ".join(
        f"{loss} in {fmt} {'not measured' if math.isnan(value) else f'{value:.1g}'}"
        for (loss, fmt), value in medians.items()
    )
    return f"{title} on {name}, {panel.replace('_', ' ')}, medians: {medians_text}."


def _png(figure: Figure) -> str:
    """The figure as a PNG image in Base64, for a `data:` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tables(frame: pd.DataFrame, thresholds: Thresholds) -> list[dict[str, Any]]:
    """The tables at the end of the page."""
    detailed = summarise(
        frame[~frame["is_sign_twin"]], ("network", "scenario", "loss", "format"), thresholds
    )
    return [
        _table("Median relative errors", overview(frame)),
        _table("Quartiles and failures by scenario", detailed.drop(columns="verdict")),
    ]


def _table(title: str, content: pd.DataFrame) -> dict[str, Any]:
    """A table with its title, column headings and cells."""
    return {
        "title": title,
        "columns": [str(name).replace("_", " ") for name in content.columns],
        "rows": [[_cell(value) for value in row] for row in content.itertuples(index=False)],
    }


def _cell(value: object) -> dict[str, str]:
    """The text of a table cell, and its value for sorting: the leading number of a text, if any."""
    if isinstance(value, float):
        text = "-" if math.isnan(value) else f"{value:.3g}"
        return {"kind": "number", "value": "" if math.isnan(value) else repr(value), "text": text}
    if isinstance(value, int):
        return {"kind": "number", "value": str(value), "text": str(value)}
    text = "-" if value is None else str(value)
    leading = text.split(" ", 1)[0]
    try:
        number = repr(float(leading))
    except ValueError:
        number = text
    return {"kind": "words" if len(text) > 40 else "", "value": number, "text": text}
