"""The stages in which the gradient's error arises, and its bounds, on the first images."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fperr.figures.panels import panels
from fperr.figures.study import Study, Subject
from fperr.measurement import measure
from fperr.report.style import STAGES, colours, legend
from fperr.vocabulary import FormatName

_MEASURED = 40  # images
_LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
_STAGE_LOSSES = ("ce", "mifpe")  # those of `_LOSSES` that the figure of the stages shows
_FORMATS: tuple[FormatName, ...] = ("float16", "float32", "float64")
_SIZES = (1e-19, 1e2)  # ends of the axes
_SHARES = (-0.8, 1.8)
_LIMITS = (1e-20, 1e8)
_LARGEST = 1000.0  # log2 of a bound is cut there, because 2**1024 is not finite in float64
_KINDS = {"proved": "tmifpe", "papers' u/G": "ce"}  # bound, and the loss whose colour it takes


def frame(study: Study) -> pd.DataFrame:
    """Measure the gradients of each network: the rows of `fperr.measure` with the true labels."""
    return study.for_each_subject("errors", _measured, _MEASURED, losses=_LOSSES, formats=_FORMATS)


def _measured(subject: Subject) -> pd.DataFrame:
    images = subject.images
    return measure(subject.model, images.x, images.y, losses=_LOSSES, formats=_FORMATS).frame


def stages(frame: pd.DataFrame) -> Figure:
    """Draw the sizes of the stages by format, and their signed shares of the error."""
    networks = list(dict.fromkeys(frame["network"]))
    drawn = [s for s in STAGES if s != "constants" or bool((frame["stage_constants"] > 0).any())]
    figure, axes = panels([""] * 2 * len(_STAGE_LOSSES) * len(networks), lines=len(networks))
    panel_axes = iter(axes)
    for name in networks:
        rows = frame[frame["network"] == name]
        for column, label in (("stage", "‖stage‖₂ / ‖g‖₂"), ("share", "signed share of the error")):
            for loss in _STAGE_LOSSES:
                axis, is_size = next(panel_axes), column == "stage"
                sns.barplot(
                    long_form(rows[rows["loss"] == loss], column), x="format", y="value",
                    hue="stage", hue_order=drawn, palette=colours(drawn), estimator="median",
                    saturation=1,
                    legend=False,
                    errorbar=("pi", 50), err_kws={"linewidth": 0.8}, ax=axis,
                )  # fmt: skip
                axis.set_title(f"{name}\n{loss}, {rows['sample'].nunique()} images")
                axis.title.set_fontsize("medium")
                axis.set(xlabel="", ylabel=label, ylim=_SIZES if is_size else _SHARES)
                if is_size:
                    axis.set_yscale("log")
                else:
                    axis.axhline(0, color="black", linewidth=1)
    legend(figure, drawn, "stage")
    figure.suptitle("Where the gradient's error arises (medians, quartiles; no bar: below 1e-19)")
    return figure


def long_form(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Turn the stages' columns into rows: one for each sample, format and stage.

    Args:
        rows: Rows of one network and loss.
        column: Prefix of the columns: "stage" for sizes relative to the gradient, which are raised
            to the lower end of the axis, or "share" for signed parts of the error.
    """
    names = {f"{column}_{stage}": stage for stage in STAGES}
    stage_values = rows.melt(["sample", "format"], list(names), "stage", "value")
    if column == "stage":
        stage_values["value"] = stage_values["value"].clip(lower=_SIZES[0])
    return stage_values.assign(stage=stage_values["stage"].map(names)).dropna(subset="value")


def bound(frame: pd.DataFrame) -> Figure:
    """Draw measured errors of the logit gradient against their bounds, a panel for each format."""
    points = error_bound_pairs(frame)
    formats = list(dict.fromkeys(points["format"]))
    figure, axes = panels(formats, lines=1)
    palette = colours(list(_KINDS.values()))
    hues = {kind: palette[colour_key] for kind, colour_key in _KINDS.items()}
    for axis, name in zip(axes, formats, strict=True):
        rows = points[points["format"] == name]
        sns.scatterplot(
            rows.assign(**{c: rows[c].clip(*_LIMITS) for c in ("bound", "measured")}),
            x="bound", y="measured", hue="kind", hue_order=list(hues), palette=hues,
            style="kind", style_order=list(hues), s=18, alpha=0.6, linewidth=0, ax=axis,
            legend=axis is axes[0],
        )  # fmt: skip
        axis.plot(_LIMITS, _LIMITS, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlim=_LIMITS, ylim=_LIMITS)
        above = rows.assign(above=rows["measured"] > rows["bound"]).groupby("kind")["above"]
        counts = ", ".join(f"{kind} {int(a.sum())} of {len(a)}" for kind, a in above)
        axis.set_title(f"{name}\nabove the bound: {counts}", fontsize="small")
        axis.set(
            xlabel="bound (beyond the scale: at its end)",
            ylabel="measured ‖v̂ − v‖₁ / ‖v‖₁ (0: at the end)",
        )
    axes[0].legend(title="bound", fontsize="small", loc="upper left")
    networks = ", ".join(dict.fromkeys(frame["network"]))
    figure.suptitle(f"The logit gradient's error against its bounds\n{networks}", fontsize="medium")
    return figure


def error_bound_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Pair measured errors with bounds: columns network, loss, format, kind, measured, bound.

    Rows where one of the two is undefined are left out.
    """
    papers = np.exp2(frame["log2_delta_sup_logit"].clip(upper=_LARGEST))
    measured = frame[["network", "loss", "format"]].assign(measured=frame["logit_delta"])
    bounds = frame["logit_delta_bound"], papers
    frames = [measured.assign(kind=k, bound=b) for k, b in zip(_KINDS, bounds, strict=True)]
    return pd.concat(frames, ignore_index=True).dropna()
