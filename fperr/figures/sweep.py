"""The gradient's error and the robust accuracy of attacks, by the temperature of MIFPE."""

import math

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fperr.figures.attacks import HALF, attack_outcomes, is_robust
from fperr.figures.panels import panels
from fperr.figures.study import Study, Subject
from fperr.measurement import measure
from fperr.report.style import colours, legend, ordered
from fperr.theory.scaling import t_star
from fperr.vocabulary import FormatName

TEMPERATURES = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
_FORMATS: tuple[FormatName, ...] = ("float16", "float32", "float64")
_ATTACK_FORMATS: tuple[FormatName, ...] = ("float16", "float32")
_SCALES = 1.0, 1024.0  # factors on the loss
_DASHES: dict[float, tuple[float, ...]] = {_SCALES[0]: (), _SCALES[1]: (4, 1.5)}
_MEASURED = 24  # images whose gradients are compared with exact ones
STEPS = 30
_DISTINCT = 4  # distinct values that a rank correlation needs to be shown
_QUARTILES = ("pi", 50)  # seaborn's name of the range between the quartiles
_FLOOR = 1e-18  # smaller errors, 0 too, are drawn there
_SHARES = (-0.04, 1.04)


def frame(study: Study) -> pd.DataFrame:
    """Compute errors and robust accuracies by T.

    Columns network, T, kind, format, loss_scale, sample, value, n, is_left_out, t_star. `kind` is
    delta or sign_error_rate, with a row for each image, or robust_accuracy, with a single row.
    Pictures leave out rows whose scale was capped (their T is another one) or that are not finite.
    """
    study = study.at_most(HALF)
    rows = [
        {"network": s.name, "T": T, "kind": "robust_accuracy", "format": name, "loss_scale": 1.0}
        | {"sample": -1, **_withstood(study, s, T, name)}
        for s in study.subjects
        for T in TEMPERATURES
        for name in _ATTACK_FORMATS
    ]
    points = pd.concat([_errors(study), pd.DataFrame(rows)], ignore_index=True)
    median_t_star = {s.name: float(t_star(s.logits.double()).median()) for s in study.subjects}
    return points.assign(t_star=points["network"].map(median_t_star))


def _withstood(study: Study, subject: Subject, T: float, format: FormatName) -> dict[str, float]:
    """The share of images that withstand MIFPE with T (`value`), and their number (`n`)."""
    loss = f"mifpe:T={T:g}"
    outcome = attack_outcomes(study, subject, loss=loss, format=format, steps=STEPS)
    return {"value": float(is_robust(outcome).mean()), "n": len(outcome), "is_left_out": False}


def _errors(study: Study) -> pd.DataFrame:
    settings = {"temperatures": TEMPERATURES, "formats": _FORMATS, "loss_scales": _SCALES}
    return study.for_each_subject("sweep", _measured, _MEASURED, **settings)


def _measured(subject: Subject) -> pd.DataFrame:
    """Measure relative errors and sign errors of the images, with their true labels."""
    images = subject.images
    names = {f"mifpe:T={T:g}": T for T in TEMPERATURES}
    frames = []
    for factor in _SCALES:
        report = measure(
            subject.model,
            images.x,
            images.y,
            losses=list(names),
            formats=_FORMATS,
            loss_scale=factor,
        )
        identifiers = ["sample", "loss", "format", "is_left_out"]
        is_left_out = report.frame["scale_capped"].fillna(True) | report.frame["delta"].isna()
        rows = report.frame.assign(is_left_out=is_left_out.astype(bool))
        long = rows.melt(identifiers, ["delta", "sign_error_rate"], "kind", "value")
        frames.append(long.assign(T=long["loss"].map(names), loss_scale=factor, n=len(images.x)))
    return pd.concat(frames, ignore_index=True).drop(columns="loss")


def draw(frame: pd.DataFrame) -> Figure:
    """Draw relative errors, sign errors and robust accuracies, a line for each network."""
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels([""] * 3 * len(networks), lines=len(networks))
    hues = ordered(frame["format"])
    for line, name in enumerate(networks):
        rows = frame[frame["network"] == name]
        error, signs, robust = axes[3 * line : 3 * line + 3]
        images_by_kind = {
            kind: int(kind_rows["n"].max()) for kind, kind_rows in rows.groupby("kind")
        }
        kinds = {"delta": error, "sign_error_rate": signs, "robust_accuracy": robust}
        for kind, axis in kinds.items():
            kind_rows = rows[(rows["kind"] == kind) & ~rows["is_left_out"]]
            if kind == "delta":
                kind_rows = kind_rows.assign(value=kind_rows["value"].clip(lower=_FLOOR))
            _draw_lines(kind_rows, hues, axis)
            axis.axvline(rows["t_star"].iloc[0], color="black", linewidth=1, linestyle=":")
            axis.set(xscale="log", xlabel="T (dotted: median t*)")
        error.set(yscale="log", ylim=(_FLOOR, 1e2), ylabel="δ = ‖ĝ − g‖₂ / ‖g‖₂")
        left_out = rows[(rows["kind"] == "delta") & rows["is_left_out"]]
        note = (
            f"{len(left_out)} gradients left out: scale capped, or not finite"
            if len(left_out)
            else ""
        )
        error.set_title(f"{name}, {images_by_kind['delta']} images\n{note}", fontsize="small")
        signs.set(ylim=_SHARES, ylabel="share of wrong signs")
        signs.set_title("solid: loss scale 1, dashed: 2¹⁰", fontsize="small")
        robust.set(
            ylim=_SHARES, ylabel=f"robust accuracy, {images_by_kind['robust_accuracy']} images"
        )
        correlations = {name: correlation(rows, name) for name in _ATTACK_FORMATS}
        correlation_text = ", ".join(
            f"{f} {'n/a' if math.isnan(r) else f'{r:+.2f}'}" for f, r in correlations.items()
        )
        robust.set_title(
            f"rank correlation with\nwrong signs: {correlation_text}", fontsize="small"
        )
    legend(figure, hues, "format")
    figure.suptitle(f"Error and robust accuracy by temperature of MIFPE (PGD, {STEPS} steps)")
    return figure


def correlation(rows: pd.DataFrame, arithmetic: str) -> float:
    """Spearman's rank correlation, over T, of wrong signs with robust accuracy.

    Wrong signs count by the median share over the images, at loss scale 1. The result is NaN if
    one of the two takes fewer than four distinct values.
    """
    rows = rows[(rows["format"] == arithmetic) & (rows["loss_scale"] == 1.0)]
    table = rows.pivot_table(index="T", columns="kind", values="value", aggfunc="median")
    table = table[["sign_error_rate", "robust_accuracy"]]
    if table.nunique().min() < _DISTINCT:
        return math.nan
    return float(table.rank().corr().iloc[0, 1])


def _draw_lines(rows: pd.DataFrame, hues: list[str], axis: Axes) -> None:
    """Draw medians and quartiles over the images, by format; dashed at the larger loss scale."""
    sns.lineplot(
        rows, x="T", y="value", hue="format", hue_order=hues, palette=colours(hues),
        style="loss_scale", style_order=list(_SCALES), dashes=_DASHES,
        estimator="median", errorbar=_QUARTILES, marker="o", markersize=3, legend=False, ax=axis,
    )  # fmt: skip
