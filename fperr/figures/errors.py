"""Where the gradient's error arises, and what bounds it: measured on the first images."""

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
_SHOWN = ("ce", "mifpe")  # of them, in the figure of the stages
_FORMATS: tuple[FormatName, ...] = ("float16", "float32", "float64")
_SIZES = (1e-19, 1e2)
_SHARES = (-0.8, 1.8)
_LIMITS = (1e-20, 1e8)
_LARGEST = 1000.0  # log2 of what is kept of a bound
_KINDS = {"proved": "tmifpe", "papers' u/G": "ce"}  # places in the palette


def frame(study: Study) -> pd.DataFrame:
    """The rows of `fperr.measure`, labels given, for each network."""
    return study.of_each("errors", _measured, _MEASURED, losses=_LOSSES, formats=_FORMATS)


def _measured(subject: Subject) -> pd.DataFrame:
    few = subject.images
    return measure(subject.model, few.x, few.y, losses=_LOSSES, formats=_FORMATS).frame


def stages(frame: pd.DataFrame) -> Figure:
    """A line of panels for each network: sizes of the stages by format, and their signed shares."""
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels([""] * 2 * len(_SHOWN) * len(networks), lines=len(networks))
    places = iter(axes)
    for name in networks:
        rows = frame[frame["network"] == name]
        for column, label in (("stage", "‖stage‖₂ / ‖g‖₂"), ("share", "signed share of the error")):
            for loss in _SHOWN:
                axis, is_size = next(places), column == "stage"
                sns.barplot(
                    long(rows[rows["loss"] == loss], column), x="format", y="value", hue="stage",
                    hue_order=STAGES, palette=colours(STAGES), estimator="median", saturation=1,
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
    legend(figure, list(STAGES), "stage")
    figure.suptitle("Where the gradient's error arises (medians, quartiles; no bar: below 1e-19)")
    return figure


def long(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row for each sample, format and stage; a stage that is exactly 0 at the scale's end.

    Args:
        rows: of one network and loss.
        column: "stage", sizes relative to the gradient, or "share", signed parts of the error.
    """
    names = {f"{column}_{stage}": stage for stage in STAGES}
    found = rows.melt(["sample", "format"], list(names), "stage", "value")
    if column == "stage":
        found["value"] = found["value"].clip(lower=_SIZES[0])
    return found.assign(stage=found["stage"].map(names)).dropna(subset="value")


def bound(frame: pd.DataFrame) -> Figure:
    """Measured against bound at the logits, a panel for each format: ours and the papers'."""
    shown = pairs(frame)
    formats = list(dict.fromkeys(shown["format"]))
    figure, axes = panels(formats, lines=1)
    palette = colours(list(_KINDS.values()))
    hues = {kind: palette[place] for kind, place in _KINDS.items()}
    for axis, name in zip(axes, formats, strict=True):
        rows = shown[shown["format"] == name]
        sns.scatterplot(
            rows.assign(**{c: rows[c].clip(*_LIMITS) for c in ("bound", "measured")}),
            x="bound", y="measured", hue="kind", hue_order=list(hues), palette=hues,
            style="kind", style_order=list(hues), s=18, alpha=0.6, linewidth=0, ax=axis,
            legend=axis is axes[0],
        )  # fmt: skip
        axis.plot(_LIMITS, _LIMITS, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlim=_LIMITS, ylim=_LIMITS)
        above = rows.assign(above=rows["measured"] > rows["bound"]).groupby("kind")["above"]
        found = ", ".join(f"{kind} {int(a.sum())} of {len(a)}" for kind, a in above)
        axis.set_title(f"{name}\nabove the bound: {found}", fontsize="small")
        axis.set(
            xlabel="bound (beyond the scale: at its end)",
            ylabel="measured ‖v̂ − v‖₁ / ‖v‖₁ (0: at the end)",
        )
    axes[0].legend(title="bound", fontsize="small", loc="upper left")
    networks = ", ".join(dict.fromkeys(frame["network"]))
    figure.suptitle(f"The logit gradient's error against its bounds\n{networks}", fontsize="medium")
    return figure


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns network, loss, format, kind, measured, bound; rows where both are defined."""
    papers = np.exp2(frame["log2_delta_sup_logit"].clip(upper=_LARGEST))
    about = frame[["network", "loss", "format"]].assign(measured=frame["logit_delta"])
    bounds = frame["logit_delta_bound"], papers
    parts = [about.assign(kind=k, bound=b) for k, b in zip(_KINDS, bounds, strict=True)]
    return pd.concat(parts, ignore_index=True).dropna()
