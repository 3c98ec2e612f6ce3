"""The attack's own loss, where the user gives it as a function of the logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.exact.audit.function_of_sample import difference
from fperr.losses import LossFunction

_PROBED_ROWS = 8
# relative to the largest of logits, value and gradient: sums of K numbers in another order differ
# by K 2^-53 of that, with a condition of a few; no loss here sums 2^20 numbers
_ROW_TOLERANCE = 2.0**-30


@dataclass(frozen=True, slots=True)
class UserLoss:
    """A loss given as a function of the logits.

    Attributes:
        function: Function `(logits, y, targets) -> (batch,)`, each value of its own row alone.
    """

    function: LossFunction

    @property
    def name(self) -> str:
        """The name of the loss in tables: `function`, and that of the function if it has one."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "function" if name == "<lambda>" else f"function {name}"

    def values(self, logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
        """The loss of each sample, (batch,).

        Raises:
            ValueError: the function returns something else.
        """
        values = self.function(logits, y, targets)
        if not isinstance(values, Tensor) or values.shape != y.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"loss(logits, y, targets) must return one value for each sample, ({len(y)},) for "
                f"logits {tuple(logits.shape)}, got {got}: leave out its mean or sum "
                "(reduction='none') and weights by sample, which are found by themselves"
            )
        return values

    def check(self, logits: Tensor, y: Tensor, targets: Tensor | None) -> None:
        """Refuse a function that fails, is random, or looks at other rows.

        Values and gradients of rows are compared in float64: in their batch, and alone.

        Args:
            logits: (batch, K), the attack's logits.
            y: (batch,) int64, the true labels.
            targets: (batch,) int64, the targets, or None.

        Raises:
            ValueError: says which; or see `values` and `gradient`.
        """
        wide = logits.detach().to(torch.float64)

        def values_and_gradients(rows: slice) -> Tensor:
            """The value and the gradient of each row, side by side: (rows, 1 + K)."""
            row_targets = None if targets is None else targets[rows]
            with torch.enable_grad():
                leaf = wide[rows].clone().requires_grad_()
                values = self.values(leaf, y[rows], row_targets)
            return torch.cat([values.detach()[:, None], self._derivative(values, leaf)], 1)

        try:
            first, second = values_and_gradients(slice(None)), values_and_gradients(slice(None))
            row_by_row = torch.cat(
                [values_and_gradients(slice(i, i + 1)) for i in range(min(len(y), _PROBED_ROWS))]
            )
        except ValueError:
            raise
        except Exception as fault:
            raise ValueError(
                f"loss(logits, y, targets) fails with {type(fault).__name__}: "
                f"{' '.join(str(fault).split())[:200]}. It gets three arguments, which it must not "
                "change, and targets is None where none are given: write e.g. lambda logits, y, "
                "targets: F.cross_entropy(logits, y, reduction='none')"
            ) from fault
        if bool(difference(first, second).any()):
            raise ValueError(
                "loss(logits, y, targets) gives other values when it is called again: it is "
                "random, give one that is a function of its arguments"
            )
        in_batch = first[: len(row_by_row)]
        size = wide[: len(row_by_row)].nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
        size = size + row_by_row.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
        if bool((difference(in_batch, row_by_row) > _ROW_TOLERANCE * size).any()):
            raise ValueError(
                "loss(logits, y, targets) gives a sample another value or gradient alone than in "
                "its batch: use each row's own logits only, without a mean, a maximum or the "
                "length of the batch; a factor of the batch is found by itself"
            )

    def gradient(
        self, logits: Tensor, y: Tensor, targets: Tensor | None, factor: float = 1.0
    ) -> Tensor:
        """The gradient (batch, K) of factor * (the sum of the values), as PyTorch computes it.

        Raises:
            ValueError: the function does not depend on the logits, or see `values`.
        """
        with torch.enable_grad():
            leaf = logits.detach().clone().requires_grad_()
            values = self.values(leaf, y, targets)
        return self._derivative(values, leaf, factor)

    def _derivative(self, values: Tensor, logits: Tensor, factor: float = 1.0) -> Tensor:
        if not values.requires_grad:
            raise ValueError(
                "loss(logits, y, targets) has no gradient: compute it from the logits, with "
                "PyTorch's operations alone, and without detach() or item()"
            )
        (derivative,) = torch.autograd.grad(values, logits, torch.full_like(values, factor))
        return derivative

    def sample_loss(
        self, y: int, target: int | None, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """The loss of a sample with these labels, as a function of its logits: (1, K) to (1,)."""
        label = torch.tensor([y], device=device)
        row_target = None if target is None else torch.tensor([target], device=device)
        return lambda logits: self.values(logits, label, row_target)
