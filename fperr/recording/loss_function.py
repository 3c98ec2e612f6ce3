"""The attack's own loss, given as a function of the logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.theory.losses import LossFunction


@dataclass(frozen=True, slots=True)
class GivenLoss:
    """A loss `function(logits, y, targets) -> (batch,)`, each value of its own row alone."""

    function: LossFunction

    @property
    def name(self) -> str:
        """What tables call it."""
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
            if not values.requires_grad:
                raise ValueError(
                    "loss(logits, y, targets) has no gradient: compute it from the logits, with "
                    "PyTorch's operations alone, and without detach() or item()"
                )
            (found,) = torch.autograd.grad(values, leaf, torch.full_like(values, factor))
        return found

    def of_sample(
        self, y: int, target: int | None, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """The loss of one sample with these labels: (1, K) to (1,)."""
        label = torch.tensor([y], device=device)
        towards = None if target is None else torch.tensor([target], device=device)
        return lambda logits: self.values(logits, label, towards)
