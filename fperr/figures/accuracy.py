"""What attacks reach: by arithmetic, by step, and how far beyond the border they push."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter

from fperr.figures.study import Study, Subject
from fperr.report.style import colours, legend, ordered

LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
MORE_LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe", "cw", "dlr", "gama")
ARITHMETICS = ("float16", "float32", "float64")
STEPS = 100
# where robust accuracy is neither 0 nor that of clean images
RADII = {"fashion_standard": 0.015, "fashion_adversarial": 0.1, "fashion_saturated": 0.05}
MNIST_RADIUS = 0.3
_SEED = 0
_TICKS = [sign * 10.0**k for sign in (-1, 1) for k in (1, 3, 5)] + [0.0]  # of margins


def radius_of(subject: Subject) -> float:
    """Of the attacks on a network."""
    return RADII.get(subject.name, MNIST_RADIUS)


def attacked(study: Study, subject: Subject, **options: Any) -> pd.DataFrame:
    """PGD's outcome for each image."""
    return study.attacked(
        subject, radius=radius_of(subject), steps=STEPS, seed=_SEED, method="pgd", **options
    )


def precision_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, arithmetic, n, robust."""
    rows = []
    for subject in study.subjects:
        for loss in LOSSES:
            for arithmetic in ARITHMETICS:
                found = attacked(study, subject, loss=loss, arithmetic=arithmetic)
                robust = int((~found["success"]).sum())
                rows.append((subject.name, loss, arithmetic, len(found), robust))
    return pd.DataFrame(rows, columns=["network", "loss", "arithmetic", "n", "robust"])


def precision(frame: pd.DataFrame) -> Figure:
    """Robust accuracy by the arithmetic of the attack's gradients, a panel for each network."""
    figure, axes = _panels(frame)
    hues = ordered(frame["loss"])
    palette = colours(hues)
    for axis, (_, rows) in zip(axes, frame.groupby("network", sort=False), strict=True):
        share = rows.assign(share=rows["robust"] / rows["n"])
        sns.barplot(
            share,
            x="arithmetic",
            y="share",
            hue="loss",
            order=list(dict.fromkeys(frame["arithmetic"])),
            hue_order=hues,
            palette=palette,
            errorbar=None,
            legend=False,
            ax=axis,
        )
        axis.set(ylim=(0, 1), xlabel="arithmetic of the gradient", ylabel="robust accuracy")
        axis.grid(axis="y", alpha=0.3)
    legend(figure, hues, "loss")
    figure.suptitle(f"Robust accuracy by arithmetic (PGD, {STEPS} steps)")
    return figure


def convergence_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, step, n, robust: after that many steps."""
    parts = []
    for subject in study.subjects:
        for loss in MORE_LOSSES:
            found = attacked(study, subject, loss=loss, arithmetic="float32")
            first = found["first_success_step"].to_numpy()
            steps = np.arange(STEPS + 1)  # 0: the start; clean errors are 0 in `first`
            fallen = ((first[None, :] >= 0) & (first[None, :] <= steps[:, None] + 1)).sum(1)
            part = pd.DataFrame({"step": steps, "n": len(first), "robust": len(first) - fallen})
            parts.append(part.assign(network=subject.name, loss=loss))
    return pd.concat(parts, ignore_index=True)


def convergence(frame: pd.DataFrame) -> Figure:
    """Robust accuracy after each step, a panel for each network."""
    figure, axes = _panels(frame)
    hues = ordered(frame["loss"])
    for axis, (_, rows) in zip(axes, frame.groupby("network", sort=False), strict=True):
        sns.lineplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="step",
            y="share",
            hue="loss",
            hue_order=hues,
            palette=colours(hues),
            style="loss",
            style_order=hues,
            drawstyle="steps-post",
            legend=False,
            ax=axis,
        )
        axis.set(xlabel="steps", ylabel="robust accuracy", ylim=(0, 1))
        axis.set_xscale("symlog", linthresh=10)
        axis.xaxis.set_major_locator(FixedLocator([0, 5, 10, 30, 100]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.grid(alpha=0.3)
    legend(figure, hues, "loss")
    figure.suptitle("Robust accuracy by step (PGD, float32)")
    return figure


def density_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, label_margin: z_y - max z_i where the attack ended."""
    parts = []
    for subject in study.subjects:
        for loss in ("clean", "ce", "mifpe"):
            if loss == "clean":
                images = subject.images
                with torch.no_grad():
                    z = torch.cat([subject.model(x) for x in torch.split(images.x, 500)]).double()
                mine = z.gather(1, images.y[:, None])[:, 0]
                margin = (mine - z.scatter(1, images.y[:, None], -torch.inf).amax(1)).numpy()
            else:
                found = attacked(study, subject, loss=loss, arithmetic="float32")
                margin = found["best_margin"].to_numpy()
            part = pd.DataFrame({"label_margin": margin, "network": subject.name, "loss": loss})
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def density(frame: pd.DataFrame) -> Figure:
    """The margin of the label after the attacks; left of 0 they have succeeded."""
    figure, axes = _panels(frame)
    hues = [name for name in ("clean", "ce", "mifpe") if name in set(frame["loss"])]
    palette = {**colours(["ce", "mifpe"]), "clean": (0.5, 0.5, 0.5)}
    for axis, (_, rows) in zip(axes, frame.groupby("network", sort=False), strict=True):
        sns.ecdfplot(rows, x="label_margin", hue="loss", hue_order=hues, palette=palette, ax=axis)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xscale("symlog")
        axis.xaxis.set_major_locator(FixedLocator(_TICKS))
        axis.set(xlabel=r"$z_y - \max_{i \neq y}\, z_i$", ylabel="share of images below")
        axis.grid(alpha=0.3)
    figure.suptitle("Margin of the label before and after attacks (PGD, float32)")
    return figure


def _panels(frame: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """A panel for each network, with its name and number of images."""
    names = list(dict.fromkeys(frame["network"]))
    figure = Figure(figsize=(3.6 * len(names) + 1.4, 3.6), layout="constrained")
    axes = list(figure.subplots(1, len(names), squeeze=False)[0])
    for axis, name in zip(axes, names, strict=True):
        rows = frame[frame["network"] == name]
        n = int(rows["n"].iloc[0]) if "n" in rows else len(rows) // rows["loss"].nunique()
        axis.set_title(f"{name}, {n} images")
    return figure, axes
