"""The gradient's error against the temperature, and what attacks at that temperature reach."""

import math

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fperr.figures.attacks import HALF, attacked, is_robust
from fperr.figures.panels import panels
from fperr.figures.study import Study, Subject
from fperr.measurement import measure
from fperr.report.style import colours, legend, ordered
from fperr.theory.scaling import t_star
from fperr.vocabulary import FormatName

TEMPERATURES = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
_FORMATS: tuple[FormatName, ...] = ("float16", "float32", "float64")
_ATTACKED: tuple[FormatName, ...] = ("float16", "float32")  # arithmetics of the attacks
_SCALES = 1.0, 1024.0  # factors on the loss
_DASHES: dict[float, tuple[float, ...]] = {_SCALES[0]: (), _SCALES[1]: (4, 1.5)}
_MEASURED = 24  # images whose gradients are compared with exact ones
STEPS = 30
_DISTINCT = 4  # values, for a correlation
_QUARTILES = ("pi", 50)  # seaborn's name of the range between the quartiles
_FLOOR = 1e-18  # drawn there: smaller errors, 0 among them
_SHARES = (-0.04, 1.04)


def frame(study: Study) -> pd.DataFrame:
    """Columns network, T, kind, format, loss_scale, sample, value, n, is_left_out, t_star.

    `kind` is delta or sign_error_rate, a row for each image, or robust_accuracy, one row. Left out
    of pictures are rows whose scale was capped (their T is another one) or that are not finite.
    """
    study = study.at_most(HALF)
    rows = [
        {"network": s.name, "T": T, "kind": "robust_accuracy", "format": name, "loss_scale": 1.0}
        | {"sample": -1, **_withstood(study, s, T, name)}
        for s in study.subjects
        for T in TEMPERATURES
        for name in _ATTACKED
    ]
    found = pd.concat([_errors(study), pd.DataFrame(rows)], ignore_index=True)
    best = {s.name: float(t_star(s.logits.double()).median()) for s in study.subjects}
    return found.assign(t_star=found["network"].map(best))


def _withstood(study: Study, subject: Subject, T: float, format: FormatName) -> dict[str, float]:
    """The share of images that withstand MIFPE with T, and how many there are."""
    loss = f"mifpe:T={T:g}"
    found = attacked(study, subject, loss=loss, format=format, steps=STEPS)
    return {"value": float(is_robust(found).mean()), "n": len(found), "is_left_out": False}


def _errors(study: Study) -> pd.DataFrame:
    settings = {"temperatures": TEMPERATURES, "formats": _FORMATS, "loss_scales": _SCALES}
    return study.of_each("sweep", _measured, _MEASURED, **settings)


def _measured(subject: Subject) -> pd.DataFrame:
    """Relative errors and sign errors of the images, labels given."""
    few = subject.images
    names = {f"mifpe:T={T:g}": T for T in TEMPERATURES}
    parts = []
    for factor in _SCALES:
        report = measure(
            subject.model, few.x, few.y, losses=list(names), formats=_FORMATS, loss_scale=factor
        )
        known = ["sample", "loss", "format", "is_left_out"]
        out = report.frame["scale_capped"].fillna(True) | report.frame["delta"].isna()
        found = report.frame.assign(is_left_out=out.astype(bool))
        long = found.melt(known, ["delta", "sign_error_rate"], "kind", "value")
        parts.append(long.assign(T=long["loss"].map(names), loss_scale=factor, n=len(few.x)))
    return pd.concat(parts, ignore_index=True).drop(columns="loss")


def draw(frame: pd.DataFrame) -> Figure:
    """A line of panels for each network: relative error, sign errors, robust accuracy."""
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels([""] * 3 * len(networks), lines=len(networks))
    hues = ordered(frame["format"])
    for line, name in enumerate(networks):
        rows = frame[frame["network"] == name]
        error, signs, robust = axes[3 * line : 3 * line + 3]
        n = {kind: int(part["n"].max()) for kind, part in rows.groupby("kind")}
        kinds = {"delta": error, "sign_error_rate": signs, "robust_accuracy": robust}
        for kind, axis in kinds.items():
            part = rows[(rows["kind"] == kind) & ~rows["is_left_out"]]
            if kind == "delta":
                part = part.assign(value=part["value"].clip(lower=_FLOOR))
            _lines(part, hues, axis)
            axis.axvline(rows["t_star"].iloc[0], color="black", linewidth=1, linestyle=":")
            axis.set(xscale="log", xlabel="T (dotted: median t*)")
        error.set(yscale="log", ylim=(_FLOOR, 1e2), ylabel="δ = ‖ĝ − g‖₂ / ‖g‖₂")
        out = rows[(rows["kind"] == "delta") & rows["is_left_out"]]
        left = f"{len(out)} gradients left out: scale capped, or not finite" if len(out) else ""
        error.set_title(f"{name}, {n['delta']} images\n{left}", fontsize="small")
        signs.set(ylim=_SHARES, ylabel="share of wrong signs")
        signs.set_title("solid: loss scale 1, dashed: 2¹⁰", fontsize="small")
        robust.set(ylim=_SHARES, ylabel=f"robust accuracy, {n['robust_accuracy']} images")
        each = {name: correlation(rows, name) for name in _ATTACKED}
        found = ", ".join(f"{f} {'n/a' if math.isnan(r) else f'{r:+.2f}'}" for f, r in each.items())
        robust.set_title(f"rank correlation with\nwrong signs: {found}", fontsize="small")
    legend(figure, hues, "format")
    figure.suptitle(f"Error and robust accuracy by temperature of MIFPE (PGD, {STEPS} steps)")
    return figure


def correlation(rows: pd.DataFrame, arithmetic: str) -> float:
    """Spearman's, over T, of the median share of wrong signs with robust accuracy; loss scale 1.

    NaN where either takes fewer than four values.
    """
    rows = rows[(rows["format"] == arithmetic) & (rows["loss_scale"] == 1.0)]
    table = rows.pivot_table(index="T", columns="kind", values="value", aggfunc="median")
    table = table[["sign_error_rate", "robust_accuracy"]]
    if table.nunique().min() < _DISTINCT:
        return math.nan
    return float(table.rank().corr().iloc[0, 1])


def _lines(rows: pd.DataFrame, hues: list[str], axis: Axes) -> None:
    """Medians and quartiles over the images, by format; dashed at the larger loss scale."""
    sns.lineplot(
        rows, x="T", y="value", hue="format", hue_order=hues, palette=colours(hues),
        style="loss_scale", style_order=list(_SCALES), dashes=_DASHES,
        estimator="median", errorbar=_QUARTILES, marker="o", markersize=3, legend=False, ax=axis,
    )  # fmt: skip
