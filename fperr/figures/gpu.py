"""Gradients and attacks in the arithmetic of a GPU, emulated: by format and loss."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fperr.errors import FperrError
from fperr.figures.attacks import (
    ARITHMETICS,
    HALF,
    attack_outcomes,
    check_arithmetic,
    robust_counts,
)
from fperr.figures.panels import panels
from fperr.figures.study import MissingResultError, Study, Subject
from fperr.report.style import colours, legend, ordered
from fperr.shares import wilson_interval
from fperr.vocabulary import FormatName

LOSSES = ("ce", "mifpe", "tmifpe")
STEPS = 30
_MEASURED = 24  # images whose gradients are compared with exact ones
_HEIGHT = 0.7  # of the part of an arithmetic's line on which its losses stand
_MARKERS = ("o", "s", "^")  # losses that coincide can still be told
_FLOOR = 1e-9  # smaller errors, 0 too, are drawn there


@dataclass(frozen=True, slots=True)
class _Panel:
    """What a column of the figure shows: a kind of value, its axis and its limits."""

    kind: str
    label: str
    scale: str
    limits: tuple[float, float]


_PANELS = (
    _Panel("delta", "δ = ‖ĝ − g‖₂ / ‖g‖₂", "log", (_FLOOR, 1e1)),
    _Panel("step_gain", "step gain ⟨g, sign ĝ⟩ / ‖g‖₁", "linear", (-0.04, 1.04)),
    _Panel("robust_accuracy", "robust accuracy", "linear", (-0.04, 1.04)),
)


def frame(study: Study) -> pd.DataFrame:
    """Measure and attack each network in each arithmetic: a row for each value that is drawn.

    Columns network, arithmetic, loss, kind, value, low, high, n, left_out, refusal. `kind` is delta
    or step_gain, with the median and the quartiles over the images, or robust_accuracy, with the
    share of the images and Wilson's interval. `n` is the number of images, of which `left_out` had
    no error that could be told, or no outcome that could be judged. Where a network is refused in
    an arithmetic, `refusal` says why, and there is no value.
    """
    return pd.DataFrame(
        row
        for subject in study.at_most(HALF).subjects
        for arithmetic in ARITHMETICS
        for row in _rows(study, subject, arithmetic)
    )


def _rows(study: Study, subject: Subject, arithmetic: FormatName) -> list[dict[str, object]]:
    """The rows of a network in an arithmetic."""
    key: dict[str, object] = {"network": subject.name, "arithmetic": arithmetic, "n": subject.n}
    try:
        check_arithmetic(subject, arithmetic)
        measured = study.gradient_errors(subject.at_most(_MEASURED), LOSSES, arithmetic)
        outcomes = {
            loss: attack_outcomes(study, subject, loss=loss, format=arithmetic, steps=STEPS)
            for loss in LOSSES
        }
    except MissingResultError:
        raise
    except FperrError as fault:
        return [key | {"loss": loss, "refusal": str(fault)} for loss in LOSSES]
    rows = []
    for loss in LOSSES:
        of_loss = measured[measured["loss"] == loss]
        for kind in ("delta", "step_gain"):
            low, median, high = of_loss[kind].quantile([0.25, 0.5, 0.75])
            values = {"kind": kind, "value": median, "low": low, "high": high, "n": len(of_loss)}
            rows.append(values | {"left_out": int(of_loss[kind].isna().sum()), "loss": loss})
        counts = robust_counts(outcomes[loss])
        low, high = wilson_interval(counts["robust"], counts["n"])
        share = {"value": counts["robust"] / counts["n"], "low": low, "high": high}
        rows.append(
            share | {"kind": "robust_accuracy", "left_out": counts["unjudged"], "loss": loss}
        )
    return [key | {"refusal": ""} | row for row in rows]


def draw(frame: pd.DataFrame) -> Figure:
    """Draw a line of panels for each network, and in them a line for each arithmetic."""
    networks = list(dict.fromkeys(frame["network"]))
    arithmetics, losses = list(dict.fromkeys(frame["arithmetic"])), ordered(frame["loss"])
    figure, axes = panels([""] * len(_PANELS) * len(networks), lines=len(networks))
    for line, name in enumerate(networks):
        rows = frame[frame["network"] == name]
        for column, panel in enumerate(_PANELS):
            axis = axes[len(_PANELS) * line + column]
            of_kind = rows[rows["kind"] == panel.kind]
            _draw_values(axis, of_kind, panel, arithmetics, losses)
            axis.set_title(_title(name, of_kind), fontsize="small")
            axis.set_yticks(range(len(arithmetics)), arithmetics if column == 0 else [])
            for position, arithmetic in enumerate(arithmetics):
                if (rows.loc[rows["arithmetic"] == arithmetic, "refusal"] != "").any():
                    axis.text(
                        0.5, position, "refused", transform=axis.get_yaxis_transform(),
                        ha="center", va="center", fontsize="small", style="italic",
                    )  # fmt: skip
    legend(figure, losses, "loss")
    figure.suptitle(
        "A GPU's arithmetic, emulated (names with @): gradients, medians and quartiles, and attacks"
        f"\n(PGD, {STEPS} steps; 95 % intervals after Wilson)"
    )
    return figure


def _draw_values(
    axis: Axes, rows: pd.DataFrame, panel: _Panel, arithmetics: list[str], losses: list[str]
) -> None:
    """Draw the values of a panel: a mark for each loss, and its range as a line."""
    palette = colours(losses)
    for number, loss in enumerate(losses):
        of_loss = rows[rows["loss"] == loss].set_index("arithmetic")
        of_loss = of_loss[of_loss["value"].notna()]
        clipped = of_loss[["value", "low", "high"]].clip(*panel.limits)
        offset = _HEIGHT * ((number + 0.5) / len(losses) - 0.5)
        positions = [arithmetics.index(str(name)) + offset for name in clipped.index]
        colour = palette[loss]
        axis.hlines(positions, clipped["low"], clipped["high"], color=colour, linewidth=1.5)
        axis.plot(clipped["value"], positions, _MARKERS[number % len(_MARKERS)], color=colour,
                  markersize=4.5, clip_on=False)  # fmt: skip
    axis.set(xscale=panel.scale, xlim=panel.limits, xlabel=panel.label)
    axis.set_ylim(len(arithmetics) - 0.5, -0.5)  # the first on top
    axis.yaxis.set_minor_locator(NullLocator())


def _title(network: str, rows: pd.DataFrame) -> str:
    """The network, its images, and how many of them are left out in the worst row."""
    if rows.empty:
        return network
    left_out = int(rows["left_out"].max())
    note = f"\n(up to {left_out} not judged)" if left_out else ""
    return f"{network}, {int(rows['n'].max())} images{note}"
