"""What an attack wants: another class than y, or the target; and what its loss is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.theory.losses import Context, Loss


@dataclass(frozen=True, slots=True)
class Goal:
    """An untargeted attack on label y, or a targeted one on class `target`.

    Attributes:
        loss: what is ascended.
        y: (batch,) the true label.
        target: (batch,), or None.
        is_mean: the losses are averaged over the batch, not added.
    """

    loss: Loss
    y: Tensor
    target: Tensor | None
    is_mean: bool

    @property
    def label(self) -> Tensor:
        """The class that the loss uses."""
        return self.y if self.target is None else self.target

    @property
    def context(self) -> Context:
        """Of the loss."""
        return Context(self.target is not None, self.y)

    def objective(self, logits: Tensor) -> Tensor:
        """A number whose gradient the attack follows."""
        losses = self.loss(logits, self.label, self.context)
        return losses.mean() if self.is_mean else losses.sum()

    def margin(self, logits: Tensor) -> Tensor:
        """(batch,) float64, what the attack pushes below 0.

        z_y - max_{i != y} z_i, or max_{i != t} z_i - z_t. NaN where logits are.
        """
        wide = logits.detach().to(torch.float64)
        mine = wide.gather(1, self.label[:, None])[:, 0]
        rest = wide.scatter(1, self.label[:, None], -torch.inf).amax(1)
        return mine - rest if self.target is None else rest - mine

    def is_reached(self, logits: Tensor) -> Tensor:
        """(batch,): the prediction (the lower index of a tie) is not y, or is the target."""
        prediction = logits.detach().argmax(1)
        finite = logits.detach().isfinite().all(1)
        hit = prediction != self.y if self.target is None else prediction == self.target
        return hit & finite

    def value(self, logits: Tensor) -> Tensor:
        """(batch,) float64: how good a point is, for attacks that compare points.

        The loss itself; for scaled cross-entropy, whose value says nothing because its scale
        follows the margin, the negative margin.
        """
        if self.loss.is_scaled:
            return -self.margin(logits)
        with torch.no_grad():
            return self.loss(logits.detach(), self.label, self.context).to(torch.float64)
