"""What a loss is: its formula, its scale, and how it is shown.

A loss maps (logits, label, context) to one value per sample; an attack ascends it, and its gradient
with respect to the logits is what is measured. The scale c is detached: a constant under
differentiation.

A class whose logit is -inf is absent: values are those of the present classes alone, and so are
gradients, which are 0 at absent classes. Of an absent label every loss but GAMA is infinite. Where
one class alone is present, the gradient is 0, and the value that of an empty maximum or sum: -inf
of stable cross-entropy and C&W, 0 of cross-entropy with any scale, -1 of GAMA. DLR, which divides
by differences of logits, is NaN where they are not those of present classes, and so is its
gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fperr.formats import Format, of_dtype
from fperr.theory.format_aware import format_aware_T
from fperr.theory.scaling import Scale, margin, scale, temperature
from fperr.theory.scenarios import Scenario

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
        value: (loss, logits, label, context) -> (batch,): the formula's value, ascended.
        display_name: its spelling in papers.
        colour: its colour in every figure, as `#rrggbb`.
        T: temperature of a scaled cross-entropy; None: the optimal one. Used if `is_scaled`.
        is_scaled: the logits are multiplied by c = T/Delta.
        is_shifted: the (detached) largest logit is subtracted before scaling.
        units: C of the format-aware temperature, which takes the place of T; None: not used.
        forced: the scenario that the optimal T is chosen for, whatever the logits say; None: the
            one that they show.
        weight: factor on GAMA's distance term in the first step.
        least_classes: the smallest K that it needs, untargeted and targeted.
    """

    name: str
    kind: Kind
    value: "Callable[[Loss, Tensor, Tensor, Context], Tensor]"
    display_name: str
    colour: str
    T: float | None = None
    is_scaled: bool = False
    is_shifted: bool = False
    units: float | None = None
    forced: Scenario | None = None
    weight: float = 0.0
    least_classes: tuple[int, int] = (2, 2)

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
        return self.least_classes[targeted]

    def scale(self, logits: Tensor, label: Tensor, context: Context) -> Scale:
        """The scale it puts on `logits` (batch, K): c = 1 and T = Delta for plain cross-entropy."""
        if not self.is_scaled:
            unit_scale = torch.ones(len(logits), dtype=logits.dtype, device=logits.device)
            return Scale(margin(logits), unit_scale, torch.zeros_like(unit_scale, dtype=torch.bool))
        fmt = of_dtype(logits.dtype)
        T = self.temperature(logits, label, fmt, context.loss_scale)
        return scale(logits, T, fmt, context.loss_scale)

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
        return self.value(self, logits, label, context)
