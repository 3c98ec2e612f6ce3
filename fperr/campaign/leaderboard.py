"""The leaderboard of a campaign: a line a model, as HTML, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from fperr.attribution.result import Attribution
from fperr.campaign.outcomes import AttackedArm, ModelOutcomes
from fperr.campaign.spec import JobSpec
from fperr.figures import table
from fperr.report.frame import Report

NOTE = (
    "Robust accuracy in per cent: images that were judged and withstood, of all images; the mean "
    "over the starts. Worst: images that withstood every attack from every start. Models are in "
    "the order of this column. Not judged: images whose outcome in some attack could not be told "
    "(a number that is not finite, a prediction that did not come again, no certified gradient); "
    "they count as fallen to it.\n"
    "Rounding: points of robust accuracy under cross-entropy that are floating-point error, with "
    "their 95 % interval (see fperr attribute). Ce less stable_ce: the same with stable "
    "cross-entropy in place of exact gradients, which tells nothing about rounding for sure.\n"
    "Attacks on fewer images than the model has here are in the tables beside this page only.\n"
    "A model of which cells are missing has no rank, and its numbers are left out."
)
_OF_FORMAT = {"float32": "", "exact": " on exact gradients"}  # in the name of a column
_STYLE = (
    ":root{color-scheme:light dark}div{overflow-x:auto}td{white-space:nowrap}"
    "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px "
    "solid #ccc}th:first-child,td:first-child{text-align:left}"
)


def line_of(
    outcomes: ModelOutcomes,
    report: Report | None,
    attributions: Sequence[tuple[JobSpec, Attribution | None]],
) -> dict[str, Any]:
    """The line of a model: columns model, images, missing, and what its jobs give.

    Args:
        outcomes: What the model's parts hold.
        report: Its measurement, or None.
        attributions: Its attributions by job; None for one whose cells are missing.
    """
    n = len(outcomes.model.images.x)
    line: dict[str, Any] = {"model": outcomes.model.spec.name, "images": n}
    if outcomes.missing:
        return line | {"missing": f"{outcomes.missing} of {outcomes.cells} cells"}
    at_all = [a for a in outcomes.attacks if len(a.frame) == n]
    if at_all:
        line |= _accuracies(at_all)
    for job, attribution in attributions:
        if attribution is not None:
            difference = attribution.part("numerical").difference
            points = [100 * v for v in (difference.estimate, difference.low, difference.high)]
            fmt = job.options["format"]
            # without exact gradients nothing is known about rounding: stable_ce stands in
            is_exact = attribution.part("numerical").second.startswith("exact")
            fewer = len(attribution.frame)
            note = "" if fewer == n else f", {fewer} images"
            line[f"{'rounding' if is_exact else 'ce less stable_ce'}, {fmt}"] = (
                f"{points[0]:.1f} [{points[1]:.1f}, {points[2]:.1f}]{note}"
            )
    if report is not None:
        for (loss, fmt), _ in report.frame.groupby(["loss", "format"], sort=False):
            verdict = report.verdicts(loss, fmt)[outcomes.model.spec.name]
            line[f"gradient of {loss}, {fmt}"] = verdict.state
    return line


def _accuracies(attacks: Sequence[AttackedArm]) -> dict[str, float | int]:
    """Shares in per cent; and how many images are not judged, if any are not."""
    frames = [attacked.frame.sort_values("sample") for attacked in attacks]
    robust = [(~frame["success"] & frame["is_judged"]).reset_index(drop=True) for frame in frames]
    shares: dict[str, list[float]] = {}
    for attacked, withstands in zip(attacks, robust, strict=True):
        options = attacked.arm.options
        fmt = _OF_FORMAT.get(options["format"], f" in {options['format']}")
        method = "" if options["method"] == "pgd" else f"{options['method']} "
        shares.setdefault(f"{method}{options['loss']}{fmt}", []).append(float(withstands.mean()))
    unjudged = ~pd.concat(
        [frame["is_judged"].reset_index(drop=True) for frame in frames], axis=1
    ).all(axis=1)
    return {
        "clean": 100 * float(frames[0]["is_clean_correct"].mean()),
        **{name: 100 * sum(values) / len(values) for name, values in shares.items()},
        "worst": 100 * float(pd.concat(robust, axis=1).all(axis=1).mean()),
        **({"not judged": int(unjudged.sum())} if unjudged.any() else {}),
    }


def frame_of(lines: Sequence[Mapping[str, Any]], absent: Mapping[str, str]) -> pd.DataFrame:
    """All lines in order; models without a rank come last, those without files among them."""
    every = [*lines, *({"model": name, "missing": f"files: {why}"} for name, why in absent.items())]
    frame = pd.DataFrame(every)
    if "missing" not in frame:
        frame["missing"] = None
    if "worst" in frame:
        frame = frame.sort_values("worst", ascending=False, na_position="last", kind="stable")
    columns = [name for name in frame if name not in ("model", "images", "worst", "missing")]
    worst = ["worst"] if "worst" in frame else []
    return frame[["model", "images", *worst, *columns, "missing"]].reset_index(drop=True)


def cells_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of the table as text."""
    text = pd.DataFrame({"model": frame["model"]})
    for name in frame.columns[1:]:
        text[name] = frame[name].map(_text)
    return text if frame["missing"].notna().any() else text.drop(columns="missing")


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and value > 100 else f"{value:.1f}"
    return str(value)


def contents(
    frame: pd.DataFrame, title: str, pages: Mapping[str, str], path: Path
) -> dict[Path, bytes]:
    """The leaderboard as HTML, Markdown and LaTeX: contents of the files, by path.

    Args:
        frame: Result of `frame_of`.
        title: Title, a single line.
        pages: Model -> address of its page, relative to the HTML file.
        path: Path of the files without their suffix.
    """
    cells = cells_of(frame)
    written = table.contents(cells, title, NOTE, path)
    linked = cells.style.hide(axis="index").format(escape="html")
    body = linked.to_html()
    for name, page in pages.items():
        shown = escape(name)
        body = body.replace(f">{shown}</td>", f'><a href="{page}">{shown}</a></td>', 1)
    lines = "".join(f"<p>{line}</p>" for line in NOTE.splitlines())
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f'<div role="region" aria-label="Leaderboard" tabindex="0">{body}</div>{lines}</html>\n'
    )
    return {path.with_suffix(".html"): html.encode(), **written}
