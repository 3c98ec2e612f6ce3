"""Underflow and rounding: cross-entropy's logit gradient for two classes, against T.

With K = 2 and y leading, v = c p_2 (-1, 1), c = T/Delta. PyTorch forms the component of the label
as p_1 - 1, by cancellation, and the other as p_2, which underflows.
"""

import math
from typing import Any

import mpmath
import pandas as pd
import torch
from matplotlib.figure import Figure

from fperr.bounds import logit_gradient, paper
from fperr.figures.margins import lost_from
from fperr.figures.panels import panels
from fperr.figures.study import Study
from fperr.formats import FLOAT16, FLOAT32, FLOAT64, format_named
from fperr.report.style import colours
from fperr.validation.logit_gradients import computed
from fperr.validation.trial_logits import TrialLogits

_FORMATS = (FLOAT16, FLOAT32, FLOAT64)
_POINTS, _DRAWS = 160, 64
_T_RANGE = 1e-2, 2e3
_MARGINS = 0.5, 2.0  # Delta, log-uniform
_SEED = 0
_LARGEST = 1000.0  # log2 of what is kept of a bound
_EXACT = mpmath.MPContext()
_EXACT.prec = 120
_LIMITS = 1e-18, 1e3
_CLIPPED = 1e-18, 1e6  # drawn there: smaller errors, 0 among them, and bounds far above
_LINES = {  # column: label, place in the palette, dashes
    "bound": ("proved bound on both", "tmifpe", (4, 1.5)),
    "paper": ("papers' u/G", "cw", (1, 1)),
    "label": ("$\\hat v_y$: cancellation", "ce", ()),
    "other": ("$\\hat v_{π_2} = c\\,\\hat p_2$: underflow", "mifpe", ()),
}


def frame(study: Study) -> pd.DataFrame:
    """Columns format, T, n; label, other (relative errors), bound, paper: the largest of n margins.

    `above`: of how many of them the error of both components exceeds the papers' u/G.
    """
    del study
    generator = torch.Generator().manual_seed(_SEED)
    low, high = (math.log10(T) for T in _T_RANGE)
    T = torch.logspace(low, high, _POINTS, dtype=torch.float64).repeat_interleave(_DRAWS)
    uniform = torch.rand(_POINTS * _DRAWS, generator=generator, dtype=torch.float64)
    margin = _MARGINS[0] * (_MARGINS[1] / _MARGINS[0]) ** uniform
    parts = []
    for fmt in _FORMATS:
        z = torch.stack([torch.zeros_like(margin), -margin], 1).to(fmt.dtype)
        label = torch.zeros(len(z), dtype=torch.int64)
        c = (T / -z[:, 1].to(torch.float64)).to(fmt.dtype).to(torch.float64)
        cases = TrialLogits(
            z, label, c, torch.zeros(len(z), dtype=torch.bool), 1.0, is_shifted=False
        )
        found = computed(cases).double().tolist()
        bounds = logit_gradient(z, label, c, fmt).tolist()
        truth = [_true(*pair) for pair in zip((-z[:, 1]).tolist(), c.tolist(), strict=True)]
        each = zip(found, bounds, truth, strict=True)
        rows = [
            (float(abs(mine / v + 1)), float(abs(other / v - 1)), float(max(limits) / v))
            for (mine, other), limits, v in each
        ]
        part = pd.DataFrame(rows, columns=["label", "other", "bound"])
        log2 = paper(z, label, c, format=fmt).clamp_max(_LARGEST)
        part = part.assign(T=T.numpy(), paper=log2.exp2().numpy())
        part["above"] = (part["label"] + part["other"]) / 2 > part["paper"]
        groups = part.groupby("T")
        largest = groups.max().assign(above=groups["above"].sum(), n=groups.size())
        parts.append(largest.reset_index().assign(format=fmt.name))
    return pd.concat(parts, ignore_index=True)


def _true(margin: float, c: float) -> Any:
    """C p_2, the size of both components of v."""
    return c / (1 + _EXACT.exp(_EXACT.mpf(c) * margin))


def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each format; the vertical lines are where v_y and v_2 are lost."""
    names = list(dict.fromkeys(frame["format"]))
    figure, axes = panels(names)
    palette = colours([place for _, place, _ in _LINES.values()])
    for axis, name in zip(axes, names, strict=True):
        rows, fmt = frame[frame["format"] == name], format_named(name)
        for column, (label, place, dash) in _LINES.items():
            (line,) = axis.plot(
                rows["T"], rows[column].clip(*_CLIPPED), color=palette[place], label=label
            )
            if dash:
                line.set_dashes(dash)
        lost = -math.log(fmt.unit_roundoff), lost_from(fmt)
        for at, style in zip(lost, (":", "--"), strict=True):
            axis.axvline(at, color="black", linewidth=1, linestyle=style)
        axis.set(xscale="log", yscale="log", ylim=_LIMITS, xlabel="T = c Δ")
        axis.set_title(
            f"{name}: ln 1/u = {lost[0]:.1f} (dotted), ln 2/η = {lost[1]:.1f} (dashed)\n"
            f"u/G is exceeded in {rows['above'].sum():,} of {rows['n'].sum():,} cases"
        )
        axis.title.set_fontsize("small")
    low, high = _MARGINS
    of = f"largest of {_DRAWS} margins Δ from {low:g} to {high:g}"
    axes[0].set_ylabel(f"relative error of a component,\n{of}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Cross-entropy's logit gradient for two classes, label ahead")
    return figure
