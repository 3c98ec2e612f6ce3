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
from fperr.figures.margins import underflow_margin
from fperr.figures.panels import panels
from fperr.figures.study import Study
from fperr.formats import FLOAT16, FLOAT32, FLOAT64, format_named
from fperr.report.style import colours
from fperr.validation.logit_gradients import pytorch_gradient
from fperr.validation.trial_logits import TrialLogits

_FORMATS = (FLOAT16, FLOAT32, FLOAT64)
_POINTS, _DRAWS = 160, 64
_T_RANGE = 1e-2, 2e3
_MARGINS = 0.5, 2.0  # Delta, log-uniform
_SEED = 0
_LARGEST = 1000.0  # log2 of a bound is cut there, because 2**1024 is not finite in float64
_EXACT = mpmath.MPContext()
_EXACT.prec = 120
_LIMITS = 1e-18, 1e3
_CLIPPED = 1e-18, 1e6  # smaller errors, 0 too, and larger bounds are drawn at these ends
_LINES = {  # column: label, the loss whose colour it takes, dashes
    "bound": ("proved bound on both", "tmifpe", (4, 1.5)),
    "paper": ("papers' u/G", "cw", (1, 1)),
    "label": ("$\\hat v_y$: cancellation", "ce", ()),
    "other": ("$\\hat v_{π_2} = c\\,\\hat p_2$: underflow", "mifpe", ()),
}


def frame(study: Study) -> pd.DataFrame:
    """Compute errors and bounds by format and T.

    Columns format, T, and n, the number of margins at that T; the largest over them of `label` and
    `other` (relative errors of the two components), `bound` and `paper`; and `above`, the number of
    margins at which the error of both components together exceeds the papers' u/G.
    """
    del study
    generator = torch.Generator().manual_seed(_SEED)
    low, high = (math.log10(T) for T in _T_RANGE)
    T = torch.logspace(low, high, _POINTS, dtype=torch.float64).repeat_interleave(_DRAWS)
    uniform = torch.rand(_POINTS * _DRAWS, generator=generator, dtype=torch.float64)
    margin = _MARGINS[0] * (_MARGINS[1] / _MARGINS[0]) ** uniform
    frames = []
    for fmt in _FORMATS:
        z = torch.stack([torch.zeros_like(margin), -margin], 1).to(fmt.dtype)
        label = torch.zeros(len(z), dtype=torch.int64)
        c = (T / -z[:, 1].to(torch.float64)).to(fmt.dtype).to(torch.float64)
        cases = TrialLogits(
            z, label, c, torch.zeros(len(z), dtype=torch.bool), 1.0, is_shifted=False
        )
        gradients = pytorch_gradient(cases).double().tolist()
        bounds = logit_gradient(z, label, c, fmt).tolist()
        truth = [
            _exact_component(*pair) for pair in zip((-z[:, 1]).tolist(), c.tolist(), strict=True)
        ]
        components = zip(gradients, bounds, truth, strict=True)
        rows = [
            (float(abs(at_label / v + 1)), float(abs(at_other / v - 1)), float(max(bound_pair) / v))
            for (at_label, at_other), bound_pair, v in components
        ]
        errors = pd.DataFrame(rows, columns=["label", "other", "bound"])
        log2_paper = paper(z, label, c, format=fmt).clamp_max(_LARGEST)
        errors = errors.assign(T=T.numpy(), paper=log2_paper.exp2().numpy())
        errors["above"] = (errors["label"] + errors["other"]) / 2 > errors["paper"]
        groups = errors.groupby("T")
        largest = groups.max().assign(above=groups["above"].sum(), n=groups.size())
        frames.append(largest.reset_index().assign(format=fmt.name))
    return pd.concat(frames, ignore_index=True)


def _exact_component(margin: float, c: float) -> Any:
    """The size of both components of v, c p_2, in multiple precision."""
    return c / (1 + _EXACT.exp(_EXACT.mpf(c) * margin))


def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel for each format, with vertical lines where v_y and v_2 are lost."""
    names = list(dict.fromkeys(frame["format"]))
    figure, axes = panels(names)
    palette = colours([colour_key for _, colour_key, _ in _LINES.values()])
    for axis, name in zip(axes, names, strict=True):
        rows, fmt = frame[frame["format"] == name], format_named(name)
        for column, (label, colour_key, dash) in _LINES.items():
            (line,) = axis.plot(
                rows["T"], rows[column].clip(*_CLIPPED), color=palette[colour_key], label=label
            )
            if dash:
                line.set_dashes(dash)
        lost = -math.log(fmt.unit_roundoff), underflow_margin(fmt)
        for T, style in zip(lost, (":", "--"), strict=True):
            axis.axvline(T, color="black", linewidth=1, linestyle=style)
        axis.set(xscale="log", yscale="log", ylim=_LIMITS, xlabel="T = c Δ")
        axis.set_title(
            f"{name}: ln 1/u = {lost[0]:.1f} (dotted), ln 2/η = {lost[1]:.1f} (dashed)\n"
            f"u/G is exceeded in {rows['above'].sum():,} of {rows['n'].sum():,} cases"
        )
        axis.title.set_fontsize("small")
    smallest, largest = _MARGINS
    extent = f"largest of {_DRAWS} margins Δ from {smallest:g} to {largest:g}"
    axes[0].set_ylabel(f"relative error of a component,\n{extent}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Cross-entropy's logit gradient for two classes, label ahead")
    return figure
