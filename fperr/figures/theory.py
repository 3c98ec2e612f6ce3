"""G(t) and the papers' bound: the curves of arXiv 2507.22428, Fig. 1, and a case with two peaks."""

import math

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from fperr.figures.study import Study
from fperr.formats import FLOAT32
from fperr.theory.scaling import log2_G, t_star
from fperr.theory.scenarios import SCENARIOS

_POINTS = 400
_T_RANGE = 1e-2, 30.0
# by case: z_pi1 - z_i of the other classes, in units of the margin
CASES = {
    "10 classes": [1.0, 1.2, 1.5, 1.8, 2.2, 2.6, 3.0, 3.5, 4.0],
    "1,000 classes, two peaks": [1.0] + [100.0] * 998,
}


def frame(study: Study) -> pd.DataFrame:
    """Compute the curves: columns case, label_leads, t, G, delta_sup, t_star.

    G is in units of 1/Delta; `delta_sup` is the papers' bound u/G for float32. `t_star` is NaN
    where the label does not lead, because G has no maximum there.
    """
    del study
    low, high = (math.log10(t) for t in _T_RANGE)
    t = torch.logspace(low, high, _POINTS, dtype=torch.float64)
    frames = []
    for name, gaps in CASES.items():
        z = -torch.tensor([[0.0, *gaps]], dtype=torch.float64)  # Delta = 1: c = t
        best = float(t_star(z))
        for label, leads in ((0, True), (1, False)):
            labels = torch.full((_POINTS,), label)
            log2_size = log2_G(z.expand(_POINTS, -1), labels, t)
            curve = pd.DataFrame({"t": t.numpy(), "G": (2.0**log2_size).numpy()})
            curve["delta_sup"] = FLOAT32.unit_roundoff / curve["G"]
            curve = curve.assign(case=name, label_leads=leads, t_star=best if leads else math.nan)
            frames.append(curve)
    return pd.concat(frames, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Draw a column for each case: G above, the bound below, and a dotted line at t*."""
    names, palette = list(dict.fromkeys(frame["case"])), sns.color_palette("colorblind")
    figure = Figure(figsize=(4.2 * len(names), 5.6), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, squeeze=False)
    for column, name in enumerate(names):
        rows = frame[frame["case"] == name]
        for line, (value, label) in enumerate(
            (("G", "G(t) · Δ"), ("delta_sup", "bound u/(G Δ), float32"))
        ):
            axis = grid[line][column]
            for leads, style in ((True, "-"), (False, "--")):
                curve = rows[rows["label_leads"] == leads]
                colour = palette[0 if leads else 1]
                axis.plot(curve["t"], curve[value], style, color=colour, label=_scenarios(leads))
            best = rows["t_star"].max()
            axis.axvline(best, color="black", linewidth=1, linestyle=":")
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            axis.set_ylabel(label)
        grid[0][column].set_title(f"{name}: t* = {best:.3g}")
        grid[1][column].set_xlabel("t")
        floor = rows.loc[rows["label_leads"], "G"].max()
        grid[0][column].set_ylim(floor * 1e-4, None)
        grid[1][column].set_ylim(None, 1e4 * FLOAT32.unit_roundoff / floor)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("The size of cross-entropy's gradient by temperature (dotted: t*)")
    return figure


def _scenarios(leads: bool) -> str:
    names = [s.name.replace("_", ", ") for s in SCENARIOS.values() if s.label_leads == leads]
    return "\n".join(names)
