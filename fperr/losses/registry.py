"""The losses that an attack ascends, by name.

A loss maps (logits, label, context) to one value per sample; its gradient with respect to the
logits is what the lab measures. The scale c is detached: a constant under differentiation.

A class whose logit is -inf is absent: values are those of the present classes alone, and so are
gradients, which are 0 at absent classes. Of an absent label every loss but GAMA is infinite. Where
one class alone is present, the gradient is 0, and the value that of an empty maximum or sum: -inf
of stable cross-entropy and C&W, 0 of cross-entropy with any scale, -1 of GAMA. DLR, which divides
by differences of logits, is NaN where they are not those of present classes, and so is its
gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fperr.formats import Format, of_dtype
from fperr.theory.format_aware import format_aware_T
from fperr.theory.scaling import Scale, factor, margin, scale, temperature
from fperr.theory.scenarios import SCENARIOS, Scenario, ranked

# A loss that a user gives: (logits (batch, K), y (batch,), targets (batch,) or None where the
# attack is untargeted) -> (batch,), each value of its own row alone.
LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Kind = Literal["cross_entropy", "stable_ce", "cw", "dlr", "gama"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a loss needs besides logits and label.

    Attributes:
        targeted: `label` is a target class, to be approached.
        y: (batch,), the true label; targeted DLR needs it.
        loss_scale: a, the factor on the loss: it lowers the cap on c.
        clean: (batch, K), the probabilities at the clean inputs; GAMA needs them.
        weight: of GAMA's distance to them.
    """

    targeted: bool = False
    y: Tensor | None = None
    loss_scale: float = 1.0
    clean: Tensor | None = None
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of the registry.

    Attributes:
        name: its spelling, e.g. `"mifpe:T=4"`.
        kind: the formula.
        T: temperature of a scaled cross-entropy; None: the optimal one. Used if `is_scaled`.
        is_scaled: the logits are multiplied by c = T/Delta.
        is_shifted: the (detached) largest logit is subtracted before scaling.
        units: C of the format-aware temperature, which takes the place of T; None: not used.
        forced: the scenario that the optimal T is chosen for, whatever the logits say; None: the
            one that they show.
        weight: of GAMA's distance term in the first step.
    """

    name: str
    kind: Kind
    T: float | None = None
    is_scaled: bool = False
    is_shifted: bool = False
    units: float | None = None
    forced: Scenario | None = None
    weight: float = 0.0

    @property
    def has_value(self) -> bool:
        """Its value says how good a point is: not where scale or weight change as it goes."""
        return not self.is_scaled and self.kind != "gama"

    @property
    def has_scale(self) -> bool:
        """T, G and the papers' bound are defined for it."""
        return self.kind == "cross_entropy"

    @property
    def targeted_is_negated(self) -> bool:
        """With the label assigned, iv is i and iii is ii with the sign of the gradient changed."""
        return self.kind != "dlr"

    def smallest_K(self, *, targeted: bool) -> int:  # noqa: N802
        """The number of classes that it needs."""
        if self.kind == "dlr":
            return 4 if targeted else 3
        return 2

    def scale(self, logits: Tensor, label: Tensor, context: Context) -> Scale:
        """The scale it puts on `logits` (batch, K): c = 1 and T = Delta for plain cross-entropy."""
        if not self.is_scaled:
            one = torch.ones(len(logits), dtype=logits.dtype, device=logits.device)
            return Scale(margin(logits), one, torch.zeros_like(one, dtype=torch.bool))
        fmt = of_dtype(logits.dtype)
        wanted = self.temperature(logits, label, fmt, context.loss_scale)
        return scale(logits, wanted, fmt, context.loss_scale)

    def temperature(
        self, logits: Tensor, label: Tensor, fmt: Format, loss_scale: float = 1.0
    ) -> Tensor:
        """The T (batch,), float64, that it asks for: fixed, t*, or the format-aware one."""
        if self.units is not None:
            return format_aware_T(logits, label, fmt, self.units, loss_scale)
        leads = None if self.forced is None else self.forced.label_leads
        return temperature(logits, label, self.T, fmt.storage_unit_roundoff, leads)

    def __call__(self, logits: Tensor, label: Tensor, context: Context) -> Tensor:
        """The loss of each sample, (batch,), in the dtype of the logits; an attack ascends it.

        Args:
            logits: (batch, K).
            label: (batch,) int64: y, or y_t if `context.targeted`.
            context: the rest.

        Raises:
            ValueError: too few classes for this loss, or targeted DLR without y.
        """
        needed = self.smallest_K(targeted=context.targeted)
        if logits.shape[1] < needed:
            raise ValueError(
                f"loss {self.name!r} needs at least {needed} classes here, got {logits.shape[1]}: "
                "leave it out"
            )
        if self.kind == "cross_entropy":
            return self._scaled_cross_entropy(logits, label, context)
        if self.kind == "stable_ce":
            return _stable_ce(logits, label, targeted=context.targeted)
        if self.kind == "cw":
            gap = _cw(logits, label)
            return -gap if context.targeted else gap
        return (
            _gama(logits, label, context) if self.kind == "gama" else _dlr(logits, label, context)
        )

    def _scaled_cross_entropy(self, logits: Tensor, label: Tensor, context: Context) -> Tensor:
        z = logits
        if self.is_shifted:
            z = z - logits.detach().amax(1, keepdim=True)
        if self.is_scaled:
            fmt = of_dtype(logits.dtype)
            wanted = self.temperature(logits, label, fmt, context.loss_scale)
            z = factor(logits, wanted, fmt, context.loss_scale)[:, None] * z
        loss = cross_entropy(z, label, reduction="none")
        return -loss if context.targeted else loss


def _gather(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None]).squeeze(1)


def _best_other(logits: Tensor, label: Tensor) -> Tensor:
    """argmax_{i != label} z_i, (batch,); the lower index of a tie."""
    return _first_but(ranked(logits), label)


def _first_but(order: Tensor, label: Tensor) -> Tensor:
    return torch.where(order[:, 0] == label, order[:, 1], order[:, 0])


def _cw(logits: Tensor, label: Tensor) -> Tensor:
    """max_{i != l} z_i - z_l; without another class -inf, a constant."""
    others = logits.detach().scatter(1, label[:, None], -math.inf)
    best, index = others.max(1)  # the lower index of a tie
    gap = _gather(logits, index) - _gather(logits, label)
    return gap.masked_fill(best == -math.inf, -math.inf)


def _stable_ce(logits: Tensor, label: Tensor, *, targeted: bool) -> Tensor:
    """logsumexp_{i != l} z_i - z_l, with the gradient v; without another class -inf, a constant.

    v is a shifted softmax over the other classes: its relative error is O(K u) for every margin.
    """
    others = logits.detach().scatter(1, label[:, None], -math.inf)
    rest = _no_plus_infinity(others.logsumexp(1, keepdim=True))
    v = others.softmax(1).scatter_(1, label[:, None], -1.0)  # shifted by the best other class
    v.masked_fill_(rest == -math.inf, 0.0)
    own = _no_plus_infinity(_gather(logits.detach(), label))
    loss: Tensor = _WithGradient.apply(logits, rest[:, 0] - own, v)  # type: ignore[no-untyped-call]
    return -loss if targeted else loss


def _no_plus_infinity(numbers: Tensor) -> Tensor:
    """The numbers, in place, with NaN for +inf."""
    return numbers.nan_to_num_(math.nan, math.nan, -math.inf)


class _WithGradient(torch.autograd.Function):
    """A value (batch,) whose gradient with respect to the logits is given.

    As a sum of v_i z_i less itself it would be NaN where a logit is -inf.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, value: Tensor, v: Tensor) -> Tensor:
        del logits
        context.save_for_backward(v)
        return value.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (v,) = context.saved_tensors
        return upstream[:, None] * v, None, None


def _dlr(logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """DLR (Croce and Hein 2020); not a number, and so marked, where its denominator is 0.

    Neither where a class of the denominator is absent: it would be infinite, and the gradient 0.
    """
    order = ranked(logits)
    top = [_gather(logits, index) for index in order[:, :4].unbind(1)]
    if not context.targeted:
        best = _gather(logits, _first_but(order, label))
        return (best - _gather(logits, label)) / _unless_absent(top[2], top[0] - top[2])
    if context.y is None:
        raise ValueError("targeted 'dlr' needs the true label: give y as well as target")
    rise = _gather(logits, label) - _gather(logits, context.y)
    return rise / _unless_absent(top[3], top[0] - (top[2] + top[3]) / 2)


def _unless_absent(logit: Tensor, number: Tensor) -> Tensor:
    """`number`, or NaN where the logit is -inf."""
    return number.masked_fill(logit.detach() == -math.inf, math.nan)


def _gama(logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """GAMA (Sriramanan et al., NeurIPS 2020), anchored on the clean image as in the paper.

    max_{i != y} p_i - p_y (targeted: p_t - max_{i != t} p_i) + weight |p - p_clean|_2^2.
    """
    if context.clean is None:
        raise ValueError("'gama' needs the probabilities at the clean inputs: use fperr.attack")
    p = logits.softmax(1)
    gap = _gather(p, _best_other(logits, label)) - _gather(p, label)
    apart = (p - context.clean.to(p.dtype)).square().sum(1)
    return (-gap if context.targeted else gap) + context.weight * apart


_FIXED = {
    loss.name: loss
    for loss in (
        Loss("ce", "cross_entropy"),
        Loss("stable_ce", "stable_ce"),
        Loss("mifpe", "cross_entropy", 1.0, is_scaled=True),
        Loss("mifpe_shifted", "cross_entropy", 1.0, is_scaled=True, is_shifted=True),
        Loss("tmifpe", "cross_entropy", None, is_scaled=True),
        Loss("tmifpe_shifted", "cross_entropy", None, is_scaled=True, is_shifted=True),
        Loss("pmifpe", "cross_entropy", None, is_scaled=True, units=1.0),
        Loss("cw", "cw"),
        Loss("dlr", "dlr"),
        Loss("gama", "gama", weight=50.0),
    )
}
_PARAMETERS = {
    "mifpe": "T",
    "mifpe_shifted": "T",
    "pmifpe": "C",
    "tmifpe": "scenario",
    "tmifpe_shifted": "scenario",
    "gama": "weight",
}
LOSS_NAMES = (
    *_FIXED,
    *(
        f"{name}:{parameter}=<{'name' if parameter == 'scenario' else 'number'}>"
        for name, parameter in _PARAMETERS.items()
    ),
)


def loss_named(name: str) -> Loss:
    """The loss called `name`, e.g. `"ce"`, `"mifpe:T=4"`, `"tmifpe:scenario=targeted_successful"`.

    Raises:
        ValueError: no such loss (lists the known ones), or what follows = is not usable.
    """
    if name in _FIXED:
        return _FIXED[name]
    base, _, assignment = name.partition(":")
    parameter, separator, text = assignment.partition("=")
    if not separator or _PARAMETERS.get(base) != parameter:
        raise ValueError(f"unknown loss {name!r}: expected one of {', '.join(LOSS_NAMES)}")
    found = replace(_FIXED[base], name=name)
    if parameter == "scenario":
        if text not in SCENARIOS:
            raise ValueError(f"loss {name!r}: scenario must be one of {', '.join(SCENARIOS)}")
        return replace(found, forced=SCENARIOS[text])
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf):
        raise ValueError(
            f"loss {name!r}: {parameter} must be a positive finite number, got {text!r}"
        )
    if parameter == "T":
        return replace(found, T=number)
    return replace(found, units=number) if parameter == "C" else replace(found, weight=number)
