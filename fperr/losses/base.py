"""The record of a loss: its formula, its scale, and how it is shown.

A loss maps (logits, label, context) to one value per sample; an attack ascends it, and its gradient
with respect to the logits is what is measured. The scale c is detached: a constant under
differentiation.

A class whose logit is -inf is absent: values and gradients are those of the present classes alone,
and gradients are 0 at absent classes. If the label is absent, every loss but GAMA is infinite. If a
single class is present, the gradient is 0, and the value that of an empty maximum or sum: -inf for
stable cross-entropy and C&W, 0 for cross-entropy with any scale, -1 for GAMA. DLR divides by
differences of logits; it is NaN if they are not logits of present classes, and so is its gradient.
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

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""The type of a loss that a user gives: `(logits, y, targets) -> values`.

`logits` are (batch, K), `y` (batch,), and `targets` (batch,), or None where the attack is
untargeted. The values are (batch,), and each depends on its own row alone. The attack ascends them.

Example:
    >>> from fperr.losses import LossFunction
    >>> def logit_of_another_class(logits, y, targets):
    ...     return -logits.gather(1, y[:, None])[:, 0]
    >>> own: LossFunction = logit_of_another_class
    >>> own.__name__
    'logit_of_another_class'
"""
Kind = Literal["cross_entropy", "stable_ce", "cw", "dlr", "gama", "comp_sum", "unlimited"]


@dataclass(frozen=True, slots=True)
class Context:
    """Inputs of a loss besides logits and label.

    Attributes:
        targeted: Whether `label` is a target class, to be approached.
        y: True labels (batch,); targeted DLR needs them.
        loss_scale: Factor a on the loss: it lowers the cap on c.
        clean: Probabilities at the clean inputs (batch, K); GAMA needs them.
        weight: Factor on GAMA's distance to those probabilities.

    Example:
        >>> import torch
        >>> from fperr.losses import Context, loss_named
        >>> logits, target = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1])
        >>> loss_named("cw")(logits, target, Context(targeted=True))
        tensor([-2.])
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
        name: Name with its parameter, e.g. `"mifpe:T=4"`.
        kind: Name of the formula.
        value: Function (loss, logits, label, context) -> (batch,): the formula's value, ascended.
        display_name: Name in papers and figures.
        colour: Colour in every figure, as `#rrggbb`.
        T: Temperature of a scaled cross-entropy; None: the optimal one. Used if `is_scaled`.
        is_scaled: Whether the logits are multiplied by c = T/Delta.
        is_shifted: Whether the (detached) largest logit is subtracted before scaling.
        units: C of the format-aware temperature, which replaces T; None: not used.
        forced: Scenario that the optimal T is chosen for, whatever the logits say; None: the
            scenario that the logits show.
        weight: Factor on GAMA's distance term in the first step.
        tau: Member of the comp-sum family; used by that kind alone.
        least_classes: Smallest K that the loss needs, untargeted and targeted.
        full_name: Name on pages; empty: the display name.

    Example:
        >>> import torch
        >>> from fperr.losses import Context, loss_named
        >>> logits, label = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
        >>> loss_named("cw")(logits, label, Context())  # the best other logit minus the label's
        tensor([-2.])
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
    tau: float = 1.0
    least_classes: tuple[int, int] = (2, 2)
    full_name: str = ""

    @property
    def has_value(self) -> bool:
        """Whether the value ranks points: no if scale or weight change during an attack."""
        return not self.is_scaled and not self.is_for_attacks_only

    @property
    def is_for_attacks_only(self) -> bool:
        """Whether the gradient has no exact counterpart: it compares points, or is a rounding."""
        return self.kind in ("gama", "unlimited")

    @property
    def has_scale(self) -> bool:
        """Whether T, G and the papers' bound are defined for the loss."""
        return self.kind == "cross_entropy"

    @property
    def targeted_is_negated(self) -> bool:
        """Whether the targeted gradients are the untargeted ones with the sign changed.

        With the label assigned, scenario iv is then i, and iii is ii.
        """
        return self.kind != "dlr"

    def smallest_K(self, *, targeted: bool) -> int:  # noqa: N802
        """The smallest number of classes that the loss needs.

        Args:
            targeted: Whether the attack is targeted.
        """
        return self.least_classes[targeted]

    def scale(self, logits: Tensor, label: Tensor, context: Context) -> Scale:
        """The scale of the loss at `logits` (batch, K).

        Plain cross-entropy has c = 1 and T = Delta, the margin.

        Args:
            logits: Logits (batch, K).
            label: Labels or targets (batch,), int64.
            context: Further inputs of the loss.

        Returns:
            T, c and whether c was capped, each (batch,).
        """
        if not self.is_scaled:
            unit_scale = torch.ones(len(logits), dtype=logits.dtype, device=logits.device)
            return Scale(margin(logits), unit_scale, torch.zeros_like(unit_scale, dtype=torch.bool))
        fmt = of_dtype(logits.dtype)
        T = self.temperature(logits, label, fmt, context.loss_scale)
        return scale(logits, T, fmt, context.loss_scale)

    def temperature(
        self, logits: Tensor, label: Tensor, fmt: Format, loss_scale: float = 1.0
    ) -> Tensor:
        """The temperature T (batch,), float64, of the loss: fixed, t*, or the format-aware one.

        Args:
            logits: Logits (batch, K).
            label: Labels or targets (batch,), int64.
            fmt: Format of the logits.
            loss_scale: Factor on the loss.
        """
        if self.units is not None:
            return format_aware_T(logits, label, fmt, self.units, loss_scale)
        leads = None if self.forced is None else self.forced.label_leads
        return temperature(logits, label, self.T, fmt.storage_unit_roundoff, leads)

    def __call__(self, logits: Tensor, label: Tensor, context: Context) -> Tensor:
        """The loss of each sample, (batch,), in the dtype of the logits; an attack ascends it.

        Args:
            logits: Logits (batch, K).
            label: Labels y (batch,), int64; targets y_t if `context.targeted`.
            context: Further inputs of the loss.

        Raises:
            ValueError: too few classes for this loss, targeted DLR without y, or GAMA without the
                clean probabilities.
        """
        needed = self.smallest_K(targeted=context.targeted)
        if logits.shape[1] < needed:
            raise ValueError(
                f"loss {self.name!r} needs at least {needed} classes here, got {logits.shape[1]}: "
                "leave it out"
            )
        return self.value(self, logits, label, context)
