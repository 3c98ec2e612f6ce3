"""T-MIFPE along an attack, and robust accuracy if it takes one scenario for another."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fperr.attacks import attack
from fperr.figures.attacks import HALF, RADII, STEPS, attack_outcomes, is_robust, radius_of
from fperr.figures.panels import panels
from fperr.figures.study import Study, Subject
from fperr.recording import record
from fperr.report.style import colours, dashes, legend, ordered
from fperr.vocabulary import FormatName, ScenarioName

_TRACED = 32  # images of a recorded attack
_COMPARED, _EVERY = 8, 10  # images compared with exact gradients, at every tenth step
_FORMATS: tuple[FormatName, ...] = ("float16", "float32")
_QUARTILES = ("pi", 50)  # seaborn's name of the range between the quartiles
_ERRORS = (1e-9, 1e1)
FORCED: dict[str, ScenarioName | None] = {
    "as\ndetected": None,
    "always\nunsuccessful": "untargeted_unsuccessful",
    "always\nsuccessful": "untargeted_successful",
}


def trace_frame(study: Study) -> pd.DataFrame:
    """Record an attack on each network: columns network, step, sample, quantity, hue, value.

    Quantities are t_star, margin, successful (0 or 1), and delta, whose hue is loss and format.
    """
    return study.for_each_subject(
        "tstar-trace", _traced, _TRACED, steps=STEPS, every=_EVERY, compared=_COMPARED,
        formats=_FORMATS, radii=RADII,
    )  # fmt: skip


def _traced(subject: Subject) -> pd.DataFrame:
    images, model = subject.images, subject.model
    recorded = record(
        model, images.x, images.y, losses=("mifpe", "tmifpe"), formats=_FORMATS,
        every=_EVERY, samples=min(_COMPARED, len(images.x)),
    )  # fmt: skip
    with recorded as trace:
        attack(model, images.x, images.y, radius=radius_of(subject), steps=STEPS, freeze=False)
    steps = trace.steps(["step", "sample", "scenario", "t_star", "margin"])
    steps["successful"] = steps["scenario"].eq("untargeted_successful").astype("float64")
    steps["t_star"] = steps["t_star"].where(steps["successful"] == 0)  # T is another one there
    step_values = steps.melt(
        ["step", "sample"], ["t_star", "margin", "successful"], "quantity", "value"
    )
    errors = trace.errors(["step", "sample", "loss", "format", "is_own", "delta"])
    errors = errors[~errors["is_own"]].rename(columns={"delta": "value"})
    hue = errors["loss"].astype(str) + ", " + errors["format"].astype(str)
    errors = errors.assign(quantity="delta", hue=hue)[
        ["step", "sample", "quantity", "hue", "value"]
    ]
    return pd.concat([step_values.assign(hue=""), errors], ignore_index=True)


def trace(frame: pd.DataFrame) -> Figure:
    """Draw t*, margin, successes, and errors with T = 1 and t*, a line for each network."""
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels([""] * 4 * len(networks), lines=len(networks))
    palette = colours(["mifpe", "tmifpe"])
    for line, name in enumerate(networks):
        rows = frame[frame["network"] == name]
        rows_by_quantity = {
            str(quantity): quantity_rows for quantity, quantity_rows in rows.groupby("quantity")
        }
        best, margin, success, error = axes[4 * line : 4 * line + 4]
        for axis, quantity in ((best, "t_star"), (margin, "margin")):
            sns.lineplot(
                rows_by_quantity[quantity].dropna(subset="value"), x="step", y="value",
                estimator="median", errorbar=_QUARTILES, color=palette["tmifpe"], ax=axis,
            )  # fmt: skip
        sns.lineplot(
            rows_by_quantity["successful"], x="step", y="value", estimator="mean", errorbar=None,
            color=palette["tmifpe"], ax=success,
        )  # fmt: skip
        errors = rows_by_quantity["delta"].dropna(subset="value")
        hues = list(dict.fromkeys(errors["hue"]))
        sns.lineplot(
            errors.assign(value=errors["value"].clip(lower=_ERRORS[0])), x="step", y="value",
            hue="hue", hue_order=hues, style="hue", style_order=hues,
            palette={hue: palette[hue.split(",")[0]] for hue in hues}, dashes=dashes(hues),
            estimator="median", errorbar=_QUARTILES, ax=error,
        )  # fmt: skip
        error.legend(fontsize="x-small", title=None)
        count = rows_by_quantity["margin"]["sample"].nunique()
        best.set(
            ylabel="t* (images not yet fooled)", title=f"{name}, {count} images", ylim=(0, None)
        )
        margin.set(ylabel="margin Δ", yscale="log")
        success.set(ylabel="share in scenario ii (successful)", ylim=(-0.04, 1.04))
        error.set(ylabel="relative error δ", yscale="log", ylim=_ERRORS)
        compared, without = errors["sample"].nunique(), rows_by_quantity["delta"]["value"].isna()
        title = f"{compared} images against exact gradients"
        if without.any():  # zero or overflowing gradients have no relative error
            title += f"\nno error: {without.sum()} of {len(without)} gradients"
        error.set_title(title, fontsize="medium")
        for axis in (best, margin, success, error):
            axis.set_xlabel("step")
    figure.suptitle("T-MIFPE along an attack (PGD, float32; medians and quartiles)")
    return figure


def phase_frame(study: Study) -> pd.DataFrame:
    """Attack with the scenario forced, and count robust images.

    Columns network, scenario, arithmetic, n, robust, best_margin (the median over the images of the
    smallest margin of the label).
    """
    rows = []
    for subject in study.at_most(HALF).subjects:
        for name, forced in FORCED.items():
            for arithmetic in _FORMATS:
                outcome = attack_outcomes(
                    study, subject, loss="tmifpe", format=arithmetic, scenario=forced,
                    freeze=False,
                )  # fmt: skip
                robust, margin = int(is_robust(outcome).sum()), outcome["best_margin"].median()
                rows.append((subject.name, name, arithmetic, len(outcome), robust, margin))
    columns = ["network", "scenario", "arithmetic", "n", "robust", "best_margin"]
    return pd.DataFrame(rows, columns=columns)


def phase(frame: pd.DataFrame) -> Figure:
    """Draw robust accuracy, and below it the label's margin, by the scenario that T assumes."""
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels([""] * 2 * len(networks), lines=2)
    hues = ordered(frame["arithmetic"])
    shares = frame.assign(share=frame["robust"] / frame["n"])
    for column, name in enumerate(networks):
        rows = shares[shares["network"] == name]
        above, below = axes[column], axes[len(networks) + column]
        for axis, value in ((above, "share"), (below, "best_margin")):
            sns.barplot(
                rows, x="scenario", y=value, hue="arithmetic", hue_order=hues, errorbar=None,
                saturation=1, palette=colours(hues), legend=False, ax=axis,
            )  # fmt: skip
            axis.set_xlabel("")
        above.set(ylim=(0, 1), ylabel="robust accuracy")
        above.set_title(f"{name}, {rows['n'].max()} images", fontsize="medium")
        below.set_ylabel("median of the smallest\n$z_y - \\max_{i≠y} z_i$")
        below.axhline(0, color="black", linewidth=1)
    legend(figure, hues, "arithmetic")
    figure.suptitle(f"T-MIFPE with the scenario forced (PGD, {STEPS} steps, none frozen)")
    return figure
