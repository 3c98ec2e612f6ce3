"""Margins of the logits, and the margin beyond which a format loses cross-entropy's gradient."""

import math

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fperr.figures.study import Study
from fperr.formats import FLOAT16, FLOAT32, FLOAT64, Format
from fperr.theory.scaling import margin

_FORMATS = (FLOAT16, FLOAT32, FLOAT64)
_SMALLEST = 1e-2  # smaller margins, those of ties too, are drawn at this one


def frame(study: Study) -> pd.DataFrame:
    """Compute the margins: columns network, sample, margin."""
    frames = [
        pd.DataFrame(
            {
                "network": subject.name,
                "sample": range(subject.n),
                "margin": margin(subject.logits).numpy(),
            }
        )
        for subject in study.subjects
    ]
    return pd.concat(frames, ignore_index=True)


def underflow_margin(fmt: Format) -> float:
    """The smallest margin whose exp(-margin) is 0 in the format: lambda = -ln(eta/2).

    eta is the smallest positive number of the format.
    """
    return -math.log(fmt.smallest_subnormal) + math.log(2)


def draw(frame: pd.DataFrame) -> Figure:
    """Draw the distribution of the margins of each network, and lambda of each format."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axis = figure.subplots()
    sns.ecdfplot(
        frame.assign(margin=frame["margin"].clip(lower=_SMALLEST)),
        x="margin",
        hue="network",
        palette=sns.color_palette("colorblind", frame["network"].nunique()),
        log_scale=True,
        ax=axis,
    )
    for fmt in _FORMATS:
        axis.axvline(underflow_margin(fmt), color="black", linewidth=1, linestyle="--")
        text = f"{fmt.name}: {underflow_margin(fmt):.0f}"
        axis.text(underflow_margin(fmt), 1.01, text, rotation=35, fontsize="small", va="bottom")
        axis.axvline(-math.log(fmt.unit_roundoff), color="black", linewidth=1, linestyle=":")
    axis.set(
        xlabel="margin Δ = $z_{π_1} − z_{π_2}$\n(from the dashed line, λ, exp(−Δ) is 0 in the "
        "format; from the dotted one below u)",
        ylabel="share of images with a smaller margin",
    )
    axis.grid(alpha=0.3)
    count = frame.groupby("network").size().max()
    figure.suptitle(f"Margins of {count:,} images of each network")
    return figure
