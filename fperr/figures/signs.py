"""Maps of the signs of a gradient: exact, computed in a format, and where the two differ."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from fperr.attacks import attack
from fperr.figures.study import Study, Subject

_LOSSES = ("ce", "mifpe")
_FORMAT = "float16"
_SEARCHED = 100  # images among which the first that is classified correctly is looked for
_BLUE, _PALE, _ORANGE, _PURPLE, _GREY = "#0173b2", "#f0f0f0", "#de8f05", "#7b3294", "#4d4d4d"
_SIGNS = ListedColormap([_BLUE, _PALE, _ORANGE])  # -1, 0, 1
_WRONG = ListedColormap([_PALE, _PURPLE, _GREY])  # right, flipped, computed as 0
_LEGEND = {
    _ORANGE: "increase the pixel",
    _BLUE: "decrease it",
    _PALE: "no direction, or right",
    _PURPLE: "wrong: the opposite direction",
    _GREY: "wrong: no direction",
}
_WORDS = {"ce": "cross-entropy", "mifpe": "MIFPE"}


def frame(study: Study) -> pd.DataFrame:
    """Compute the signs: columns network, sample, loss, row, column, pixel, exact, computed."""
    return study.for_each_subject("sign-map", _signs, _SEARCHED, losses=_LOSSES, format=_FORMAT)


def _signs(subject: Subject) -> pd.DataFrame:
    """Compute the signs of the first image that is classified correctly.

    Raises:
        ValueError: The images have several channels.
    """
    is_correct = subject.logits.argmax(1) == subject.images.y.cpu()
    sample = int(is_correct.int().argmax())
    x, y = subject.images.x[sample : sample + 1], subject.images.y[sample : sample + 1]
    if x.shape[1] != 1:
        raise ValueError(
            f"sign-map draws images of one channel, and those of {subject.name} have {x.shape[1]}: "
            "choose another network"
        )
    rows, columns = np.indices(x.shape[-2:])
    frames = []
    for loss in _LOSSES:
        exact, computed = (
            gradient(subject, x, y, loss=loss, format=name)[0, 0].sign().cpu().numpy()
            for name in ("exact", _FORMAT)
        )
        flat = {"row": rows, "column": columns, "pixel": x[0, 0].cpu().numpy()}
        flat |= {"exact": exact, "computed": computed}
        pixels = pd.DataFrame({name: values.reshape(-1) for name, values in flat.items()})
        frames.append(pixels.assign(sample=sample, loss=loss))
    return pd.concat(frames, ignore_index=True)


def gradient(subject: Subject, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The gradient that the first step of an attack from x takes, up to a positive factor."""
    gradients: list[Tensor] = []
    attack(
        subject.model, x, y, radius=1 / 255, steps=1, random_start=False, freeze=False,
        on_step=lambda _i, _x, _z, g: gradients.append(g.detach().clone()), **options,
    )  # fmt: skip
    return torch.stack(gradients)[0]


def draw(frame: pd.DataFrame) -> Figure:
    """Draw a line for each network and loss: the image, both signs, and where they differ."""
    groups = list(frame.groupby(["network", "loss"], sort=False))
    figure = Figure(figsize=(8.6, 2.25 * len(groups) + 0.9), layout="constrained")
    axes = figure.subplots(len(groups), 4, squeeze=False)
    for line, ((network, loss), rows) in zip(axes, groups, strict=True):
        wrong = sign_errors(rows)
        pictures = rows["pixel"], rows["exact"], rows["computed"], wrong
        maps: tuple[Any, ...] = "gray", _SIGNS, _SIGNS, _WRONG
        ranges = (0, 1), (-1, 1), (-1, 1), (0, 2)
        for axis, values, colours, (low, high) in zip(line, pictures, maps, ranges, strict=True):
            axis.imshow(picture(rows, values), cmap=colours, vmin=low, vmax=high)
            _hide_ticks(axis)
        nonzero = int((rows["exact"] != 0).sum())
        line[0].set_ylabel(f"{_WORDS.get(str(loss), loss)}\n{network}", fontsize="medium")
        line[3].set_xlabel(f"{int((wrong != 0).sum())} of {nonzero} signs wrong", fontsize="medium")
    for axis, title in zip(
        axes[0],
        ("image", "exact direction", f"direction in {_FORMAT}", "wrong"),
        strict=True,
    ):
        axis.set_title(title, fontsize="medium")
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor=_GREY, label=words)
            for colour, words in _LEGEND.items()
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


def sign_errors(rows: pd.DataFrame) -> "pd.Series[int]":
    """Class of each sign: 0 right, or the exact gradient is 0 there; 1 flipped; 2 computed as 0."""
    is_nonzero = rows["exact"] != 0
    is_lost, is_flipped = (
        is_nonzero & (rows["computed"] == 0),
        is_nonzero & (rows["computed"] == -rows["exact"]),
    )
    return is_flipped.astype(int) + 2 * is_lost.astype(int)


def picture(rows: pd.DataFrame, values: "pd.Series[Any]") -> np.ndarray:
    """Arrange the values as an image, by the columns `row` and `column`."""
    table = rows.assign(value=values).pivot(index="row", columns="column", values="value")
    return np.asarray(table)


def _hide_ticks(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
