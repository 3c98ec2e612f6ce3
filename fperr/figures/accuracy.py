"""What attacks reach: by arithmetic, by step, and how far beyond the border they push."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter
from torch import nn

from fperr.figures.panels import by_network
from fperr.figures.study import Study, Subject
from fperr.report.style import colours, dashes, legend, ordered

LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
MORE_LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe", "cw", "dlr", "gama")
ARITHMETICS = ("float16", "float32", "float64")
STEPS = 100
# where robust accuracy is neither 0 nor that of clean images
RADII = {"fashion_standard": 0.015, "fashion_adversarial": 0.1, "fashion_saturated": 0.05}
MNIST_RADIUS = 0.3
_HALF = 300  # images at most in a half format: on a CPU it takes ten times as long as float32
SEED = 0
_TICKS = [sign * 10.0**k for sign in (-1, 1) for k in (1, 3, 5)] + [0.0]  # of margins


def radius_of(subject: Subject) -> float:
    """Of the attacks on a network."""
    return RADII.get(subject.name, MNIST_RADIUS)


def attacked(
    study: Study,
    subject: Subject,
    *,
    loss: str,
    arithmetic: str = "float32",
    model: nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """An attack's outcome for each image; in a half format at most for the first 300.

    Args:
        study: where results are kept.
        subject: network and images.
        loss: of the attack.
        arithmetic: of the attack.
        model: attacked instead of the subject's network.
        options: of `fperr.attack`, other than the standard ones.
    """
    if arithmetic in ("float16", "bfloat16"):
        subject = subject.at_most(_HALF)
    standard = {"radius": radius_of(subject), "steps": STEPS, "seed": SEED, "method": "pgd"}
    options = {**standard, **options, "loss": loss, "arithmetic": arithmetic}
    return study.attacked(subject, model, **options)


def withstood(found: pd.DataFrame) -> dict[str, int]:
    """How many images there are, and how many withstood."""
    return {"n": len(found), "robust": int((~found["success"]).sum())}


def precision_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, arithmetic, n, robust."""
    return pd.DataFrame(
        {"network": subject.name, "loss": loss, "arithmetic": arithmetic}
        | withstood(attacked(study, subject, loss=loss, arithmetic=arithmetic))
        for subject in study.subjects
        for loss in LOSSES
        for arithmetic in ARITHMETICS
    )


def precision(frame: pd.DataFrame) -> Figure:
    """Robust accuracy by the arithmetic of the attack's gradients, a panel for each network."""
    figure, parts = by_network(frame)
    hues = ordered(frame["loss"])
    for axis, rows in parts:
        sns.barplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="arithmetic",
            y="share",
            hue="loss",
            order=list(dict.fromkeys(frame["arithmetic"])),
            hue_order=hues,
            palette=colours(hues),
            errorbar=None,
            legend=False,
            ax=axis,
        )
        axis.set(ylim=(0, 1), xlabel="arithmetic of the gradient", ylabel="robust accuracy")
    legend(figure, hues, "loss")
    figure.suptitle(f"Robust accuracy by arithmetic (PGD, {STEPS} steps)")
    return figure


def convergence_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, step, n, robust: after that many steps."""
    parts = []
    for subject in study.subjects:
        for loss in MORE_LOSSES:
            first = attacked(study, subject, loss=loss)["first_success_step"].to_numpy()
            steps = np.arange(STEPS + 1)  # 0: the start; clean errors are 0 in `first`
            fallen = ((first[None, :] >= 0) & (first[None, :] <= steps[:, None] + 1)).sum(1)
            part = pd.DataFrame({"step": steps, "n": len(first), "robust": len(first) - fallen})
            parts.append(part.assign(network=subject.name, loss=loss))
    return pd.concat(parts, ignore_index=True)


def convergence(frame: pd.DataFrame) -> Figure:
    """Robust accuracy after each step, a panel for each network."""
    figure, parts = by_network(frame)
    hues = ordered(frame["loss"])
    for axis, rows in parts:
        sns.lineplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="step",
            y="share",
            hue="loss",
            hue_order=hues,
            palette=colours(hues),
            style="loss",
            style_order=hues,
            dashes=dashes(hues),
            drawstyle="steps-post",
            legend=False,
            ax=axis,
        )
        axis.set(xlabel="steps", ylabel="robust accuracy", ylim=(0, 1))
        axis.set_xscale("symlog", linthresh=10)
        axis.xaxis.set_major_locator(FixedLocator([0, 5, 10, 30, 100]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
    legend(figure, hues, "loss", lines=True)
    figure.suptitle("Robust accuracy by step (PGD, float32)")
    return figure


def density_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, label_margin (z_y - max z_i where the attack ended), n."""
    parts = []
    for subject in study.subjects:
        for loss in ("clean", "ce", "mifpe"):
            if loss == "clean":
                images, z = subject.images, subject.logits.double()
                mine = z.gather(1, images.y[:, None])[:, 0]
                margin = (mine - z.scatter(1, images.y[:, None], -torch.inf).amax(1)).numpy()
            else:
                margin = attacked(study, subject, loss=loss)["best_margin"].to_numpy()
            part = pd.DataFrame({"label_margin": margin, "network": subject.name, "loss": loss})
            parts.append(part.assign(n=subject.n))
    return pd.concat(parts, ignore_index=True)


def density(frame: pd.DataFrame) -> Figure:
    """The margin of the label after the attacks; left of 0 they have succeeded."""
    figure, parts = by_network(frame)
    hues = [name for name in ("clean", "ce", "mifpe") if name in set(frame["loss"])]
    palette = {**colours(["ce", "mifpe"]), "clean": (0.5, 0.5, 0.5)}
    for axis, rows in parts:
        sns.ecdfplot(rows, x="label_margin", hue="loss", hue_order=hues, palette=palette, ax=axis)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xscale("symlog")
        axis.xaxis.set_major_locator(FixedLocator(_TICKS))
        axis.set(xlabel=r"$z_y - \max_{i \neq y}\, z_i$", ylabel="share of images below")
    figure.suptitle("Margin of the label before and after attacks (PGD, float32)")
    return figure
