"""Whether a loss explains an attack's dL/dz, to within rounding, and with which factor."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.formats import of_dtype
from fperr.gradient_error.loss_bound import logit_bound
from fperr.losses import Context, Loss
from fperr.networks.in_format import FloatGradient
from fperr.recording.factors import FEWEST_CLEAR, FEWEST_CLEAR_OF_CW, fitted_factors, ones
from fperr.recording.loss_function import UserLoss

# a library's kernel may differ from the one that the bound models in the order of its operations
_SLACK = 2.0
_FLOAT64_ERRORS = 4.0  # a function's tolerance, in units of the error that float64 shows in it
_SCALES = (1.0, 0.7, 1.3, 1.9, 0.11)  # of a loss, none a power of two of another
_ROUNDINGS = 16  # of C&W and DLR: eight operations, each at most one rounding of input and output


@dataclass(frozen=True, slots=True)
class RecognisedLoss:
    """The loss of a backward pass: dL/dz = factor * (its logit gradient, ascended), but rounding.

    Attributes:
        name: Name of the loss; `"logit"` for the gradient of one logit; `"zero"` for a dL/dz that
            is zero, where no earlier step shows the loss; `"unknown"`.
        loss: Loss of the registry, if it is one.
        label: (batch,) int64, the class that the loss uses; y where the loss is unknown.
        targeted: Whether `label` is a target.
        explained: (batch,) bool, the rows that the loss explains. The others are zero where the
            loss cannot be, masked perhaps, or not finite.
        reduction: `"sum"`, `"mean"`, `"scaled"` (by another factor), `"by sample"` (by one for each
            row) or `"unknown"`.
        factor: (batch,) float64, 1, 1/batch or the factor that fits best; negative where the attack
            descends.
        user_loss: Loss that the user gave as a function, if it is that.
    """

    name: str
    loss: Loss | None
    label: Tensor
    targeted: bool
    explained: Tensor
    reduction: str
    factor: Tensor
    user_loss: UserLoss | None = None

    @property
    def has_exact_gradient(self) -> bool:
        """Whether the exact gradient of the loss can be computed at the rows that it explains."""
        return self.loss is not None or self.user_loss is not None

    def explains(self, row: int) -> bool:
        """Whether the loss explains this row, and its exact gradient can be computed."""
        return self.has_exact_gradient and bool(self.explained[row])

    @property
    def sign(self) -> int:
        """The sign of the factors: 1 if the attack ascends the loss, -1 if it descends it."""
        return 1 if bool((self.factor > 0).any()) else -1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loss that may explain dL/dz.

    Attributes:
        loss: Loss of the registry.
        targeted: Whether it uses a target as its label.
        reduction: Kind of factor, see `RecognisedLoss`.
        sign: Sign of the factor: 1 if the attack ascends the loss, -1 if it descends it.
    """

    loss: Loss
    targeted: bool
    reduction: str
    sign: int


@dataclass(frozen=True, slots=True)
class LogitGradients:
    """The logit gradients of one or several backward passes, one below the other.

    Attributes:
        logits: (rows, K), the logits.
        v: (rows, K), dL/dz.
        y: (rows,) int64, the true labels.
        targets: (rows,) int64, the targets, where they are known.
        batch: Number of rows of each pass.
    """

    logits: Tensor
    v: Tensor
    y: Tensor
    targets: Tensor | None
    batch: int

    @property
    def is_required(self) -> Tensor:
        """The rows that a loss must explain, (rows,) bool: finite and not exactly zero."""
        return self.v.ne(0).any(1) & self.is_finite

    @property
    def is_finite(self) -> Tensor:
        """Whether dL/dz and the logits, but for absent classes, are finite; (rows,) bool."""
        z = self.logits
        return self.v.isfinite().all(1) & ~(z.isnan() | z.isposinf()).any(1)

    def refitted(self, last: RecognisedLoss) -> RecognisedLoss | None:
        """The loss of the step before, if it explains these gradients, too."""
        if last.user_loss is not None and last.reduction != "unknown":
            return fitted_user_loss(last.user_loss, self)
        if last.reduction == "unknown" or last.loss is None:
            return None
        if self._is_bit_by_bit(last.loss, last):
            all_rows = torch.ones(len(self.v), dtype=torch.bool, device=self.v.device)
            label = self.y if self.targets is None else self.targets
            factor = last.factor[:1].expand(len(self.v))
            return replace(last, label=label, explained=all_rows, factor=factor)
        fit = fitted(Candidate(last.loss, last.targeted, last.reduction, last.sign), self)
        return None if fit is None else fit[0]

    def _is_bit_by_bit(self, loss: Loss, last: RecognisedLoss) -> bool:
        """Whether v is PyTorch's own gradient of the loss: no bound is needed to see that."""
        if last.reduction in ("scaled", "by sample") or last.targeted != (self.targets is not None):
            return False
        label = self.y if self.targets is None else self.targets
        with torch.enable_grad():
            leaf = self.logits.clone().requires_grad_()
            losses = loss(leaf, label, Context(last.targeted, self.y))
            (gradient,) = torch.autograd.grad(
                losses, leaf, last.factor[:1].expand(len(losses)).to(losses)
            )
        return torch.equal(gradient, self.v)


def fitted(candidate: Candidate, step: LogitGradients) -> tuple[RecognisedLoss, float] | None:
    """Fit a candidate to the logit gradients.

    Returns:
        The recognised loss, and the sum of what it leaves of v, relative to that of v; None if it
        does not explain v.
    """
    loss, targeted, sign = candidate.loss, candidate.targeted, candidate.sign
    v, is_required = step.v, step.is_required
    label = step.y
    if targeted:
        # the target has the largest entry of the gradient of an ascended loss
        label = (sign * v).argmax(1) if step.targets is None else step.targets
        if step.targets is None and bool((label == step.y)[is_required].any()):
            return None
    if step.logits.shape[1] < loss.smallest_K(targeted=targeted):
        return None
    if not _has_signs(loss, sign * v[is_required], label[is_required], targeted=targeted):
        return None
    count = step.batch if candidate.reduction == "mean" else 1
    exact, tolerance = _exact_gradient(
        loss, step.logits, v, label, Context(targeted, step.y), count
    )
    fewest = FEWEST_CLEAR_OF_CW if loss.kind == "cw" else FEWEST_CLEAR
    fit = fitted_factors(
        v, is_required, step.batch, exact, tolerance, candidate.reduction, sign, fewest
    )
    if fit is None:
        return None
    factor, explained = fit
    counted = is_required & explained
    wide, divisor = v.to(torch.float64), factor[:, None]
    if candidate.reduction == "scaled":  # what is compared between losses is what any factor leaves
        divisor = (wide[is_required] * exact[is_required]).sum()
        divisor = divisor / exact[is_required].square().sum()
    error = (wide / divisor - exact).abs()
    relative_error = float(error[counted].sum() / exact[counted].abs().sum())
    recognised = RecognisedLoss(
        loss.name, loss, label, targeted, explained, candidate.reduction, factor
    )
    return recognised, relative_error


def fitted_user_loss(loss: UserLoss, step: LogitGradients) -> RecognisedLoss | None:
    """Fit the user's own loss to the logit gradients; None if it does not explain v.

    It explains v bit by bit, or to within a few times its rounding error in the attack's format:
    the difference to float64 at the same logits.
    """
    v, is_targeted, is_finite = step.v, step.targets is not None, step.is_finite
    label = step.y if step.targets is None else step.targets
    recognised = RecognisedLoss(
        loss.name, None, label, is_targeted, is_finite, "sum", ones(v), loss
    )
    for sign in (1, -1):
        for reduction, count in (("sum", 1), ("mean", step.batch)):
            gradient = loss.gradient(step.logits, step.y, step.targets, sign / count)
            if torch.equal(gradient[is_finite], v[is_finite]):
                # a v of zeros alone shows neither reduction nor sign
                shows_factor = bool(step.is_required.any())
                reduction = reduction if shows_factor else "unknown"
                factor = ones(v) * sign / count if shows_factor else ones(v)
                return replace(recognised, reduction=reduction, factor=factor)
    if not bool(step.is_required.any()):
        return None
    exact = loss.gradient(step.logits.to(torch.float64), step.y, step.targets)
    largest = exact.abs().amax(1, keepdim=True)
    tolerance = _ROUNDINGS * of_dtype(step.logits.dtype).unit_roundoff * largest
    for scale in _SCALES:  # what cancels comes out otherwise with another factor
        gradient = loss.gradient(step.logits, step.y, step.targets, scale).to(torch.float64)
        tolerance = tolerance.maximum(_FLOAT64_ERRORS * (gradient / scale - exact).abs())
    for reduction in ("sum", "mean", "scaled", "by sample"):
        for sign in (1, -1):
            fit = fitted_factors(
                v, step.is_required, step.batch, exact, tolerance, reduction, sign,
                FEWEST_CLEAR_OF_CW,
            )  # fmt: skip
            if fit is not None:
                factors, explained = fit
                return replace(recognised, explained=explained, reduction=reduction, factor=factors)
    return None


def _has_signs(loss: Loss, v: Tensor, label: Tensor, *, targeted: bool) -> bool:
    """Whether the label's entry has one sign and no other entry has it.

    So it is for every loss but DLR.
    """
    if loss.kind == "dlr":
        return True
    away = -v if targeted else v  # lowers the label's logit
    is_label = torch.zeros_like(v, dtype=torch.bool).scatter(1, label[:, None], value=True)
    return bool(torch.where(is_label, away <= 0, away >= 0).all())


def _exact_gradient(
    loss: Loss, logits: Tensor, v: Tensor, label: Tensor, context: Context, count: int
) -> tuple[Tensor, Tensor]:
    """The logit gradient of the summed loss, and an upper bound on the error of a computed one.

    Both (rows, K) in float64; the bound is proved for cross-entropy, and some roundings of the
    largest entry for other losses.
    """
    if loss.kind in ("cross_entropy", "stable_ce"):
        scale = loss.scale(logits, label, context)
        run = FloatGradient(logits, v, v, scale, (1.0, count), is_autocast=False)
        bound = logit_bound(run, label, loss)
        assert bound is not None
        is_label = torch.zeros_like(bound.exact).scatter(1, label[:, None], 1.0).bool()
        # bound.exact holds absolute values; an untargeted loss lowers the label's logit alone
        signs = torch.where(is_label == context.targeted, 1.0, -1.0)
        return signs * bound.exact, _SLACK * bound.error
    wide = logits.to(torch.float64).requires_grad_()
    with torch.enable_grad():
        (exact,) = torch.autograd.grad(loss(wide, label, context).sum(), wide)
    largest = exact.abs().amax(1, keepdim=True)
    tolerance = _ROUNDINGS * of_dtype(logits.dtype).unit_roundoff * largest
    return exact, tolerance.expand_as(exact)
