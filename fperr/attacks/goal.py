"""What an attack wants: another class than y, or the target; and what its loss is."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.losses import Context, Loss


@dataclass(frozen=True, slots=True)
class Goal:
    """An untargeted attack on label y, or a targeted one on class `target`.

    Attributes:
        loss: what is ascended.
        y: (batch,) the true label.
        target: (batch,), or None.
        is_mean: the losses are averaged over the batch, not added.
        clean: (batch, K), the probabilities at the clean inputs.
        weight: of GAMA's distance to them.
    """

    loss: Loss
    y: Tensor
    target: Tensor | None
    is_mean: bool
    clean: Tensor
    weight: float = 0.0

    def at(self, part: float) -> "Goal":
        """The goal when `part` of the steps are done: GAMA's weight falls to 0 in a quarter."""
        if self.loss.kind != "gama":
            return self
        return replace(self, weight=self.loss.weight * max(0.0, 1 - 4 * part))

    @property
    def label(self) -> Tensor:
        """The class that the loss uses."""
        return self.y if self.target is None else self.target

    @property
    def context(self) -> Context:
        """Of the loss."""
        return Context(self.target is not None, self.y, clean=self.clean, weight=self.weight)

    def objective(self, logits: Tensor) -> Tensor:
        """A number whose gradient the attack follows."""
        losses = self.loss(logits, self.label, self.context)
        return losses.mean() if self.is_mean else losses.sum()

    def margin(self, logits: Tensor) -> Tensor:
        """(batch,) float64, what the attack pushes below 0.

        z_y - max_{i != y} z_i, or max_{i != t} z_i - z_t. NaN where logits are; infinite where the
        label's is -inf, or all others are.
        """
        z, label = logits.detach().to(torch.float64), self.label[:, None]
        mine = z.gather(1, label)
        rest = z.scatter(1, label, -torch.inf).amax(1, keepdim=True)
        return (mine - rest if self.target is None else rest - mine)[:, 0]

    def reached(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch,): whether the prediction is not y, or is the target; the margin; is it finite.

        The prediction is the lower index of a tie. Not where the logits are not finite: the margin
        is infinite there.
        """
        margin = self.margin(logits).nan_to_num_(torch.inf, torch.inf, torch.inf)
        prediction = logits.detach().argmax(1)
        hit = prediction != self.y if self.target is None else prediction == self.target
        finite = margin < torch.inf
        return hit & finite, margin, finite

    def value(self, logits: Tensor) -> Tensor:
        """(batch,) float64: how good a point is, for attacks that compare points.

        The loss itself; the negative margin for scaled cross-entropy, whose value says nothing
        because its scale follows the margin, and for GAMA, whose weight changes.
        """
        if not self.loss.has_value:
            return -self.margin(logits)
        with torch.no_grad():
            return self.loss(logits.detach(), self.label, self.context).to(torch.float64)
