"""The goal of an attack: leave class y, or reach a target; and the loss that it ascends."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.losses import Context, Loss


@dataclass(frozen=True, slots=True)
class Goal:
    """An untargeted attack on the labels `y`, or a targeted one on the classes `targets`.

    Attributes:
        loss: Loss that the attack ascends.
        y: (batch,) int64, the true labels.
        targets: (batch,) int64, the classes to reach; None: the attack is untargeted.
        is_mean: Whether the losses are averaged over the batch; else they are added.
        clean_probabilities: (batch, K) float64, the softmax at the clean inputs, which GAMA needs.
        weight: Weight of GAMA's distance to `clean_probabilities`.
    """

    loss: Loss
    y: Tensor
    targets: Tensor | None
    is_mean: bool
    clean_probabilities: Tensor
    weight: float = 0.0

    def at_fraction(self, fraction: float) -> "Goal":
        """The goal after this fraction of the steps, from 0 to 1.

        GAMA's weight falls linearly to 0 over the first quarter; no other goal changes.
        """
        if self.loss.kind != "gama":
            return self
        return replace(self, weight=self.loss.weight * max(0.0, 1 - 4 * fraction))

    @property
    def label(self) -> Tensor:
        """The class that the loss uses: the target of a targeted attack, else y; (batch,)."""
        return self.y if self.targets is None else self.targets

    @property
    def context(self) -> Context:
        """The context that the loss needs besides logits and label."""
        return Context(
            self.targets is not None, self.y, clean=self.clean_probabilities, weight=self.weight
        )

    def objective(self, logits: Tensor) -> Tensor:
        """The number whose gradient the attack follows: the sum or mean of the losses."""
        losses = self.loss(logits, self.label, self.context)
        return losses.mean() if self.is_mean else losses.sum()

    def margin(self, logits: Tensor) -> Tensor:
        """The margin (batch,) float64, which is negative where the attack has succeeded.

        z_y - max_{i != y} z_i, or max_{i != t} z_i - z_t for target t. NaN where a logit is NaN;
        infinite where the label's logit is -inf, or all others are.
        """
        z, label = logits.detach().to(torch.float64), self.label[:, None]
        label_logit = z.gather(1, label)
        largest_other = z.scatter(1, label, -torch.inf).amax(1, keepdim=True)
        is_untargeted = self.targets is None
        return (label_logit - largest_other if is_untargeted else largest_other - label_logit)[:, 0]

    def verdict(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge each sample by its logits (batch, K).

        The prediction is the class of the largest logit, the lower index of a tie. Where the margin
        is not finite, the goal counts as not reached, and the margin is given as infinite.

        Returns:
            Three tensors (batch,): whether the goal is reached, bool; the margin, float64; whether
            the margin is finite, bool.
        """
        margin = self.margin(logits).nan_to_num_(torch.inf, torch.inf, torch.inf)
        prediction = logits.detach().argmax(1)
        is_hit = prediction != self.y if self.targets is None else prediction == self.targets
        is_finite = margin < torch.inf
        return is_hit & is_finite, margin, is_finite

    def value(self, logits: Tensor) -> Tensor:
        """The value (batch,) float64 by which an attack compares points: larger is better.

        The loss itself. But for a scaled cross-entropy, whose scale follows the margin, and for
        GAMA, whose weight changes, losses at different points do not compare: there it is the
        negative margin.
        """
        if not self.loss.has_value:
            return -self.margin(logits)
        with torch.no_grad():
            return self.loss(logits.detach(), self.label, self.context).to(torch.float64)
