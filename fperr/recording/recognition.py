"""Which loss an attack follows, and how it puts a batch together, from its dL/dz."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.formats import of_dtype
from fperr.measurement.bounded import logit_bound
from fperr.measurement.network import FloatGradient
from fperr.theory.losses import Context, Loss, named

CANDIDATES = ("ce", "stable_ce", "cw", "dlr", "mifpe", "tmifpe", "mifpe_shifted", "tmifpe_shifted")
# a library's kernel may differ from the one that the bound models in the order of its operations
_SLACK = 2.0
_ROUNDINGS = 16  # of C&W and DLR: eight operations, each at most one rounding of input and output


@dataclass(frozen=True, slots=True)
class Recognised:
    """dL/dz = factor * (the logit gradient of `loss`, ascended), within rounding.

    Attributes:
        name: of the loss; `"logit"` for the gradient of one logit; `"unknown"`.
        loss: the loss, where it is one of the registry.
        label: (batch,) the class that it uses; y where it is unknown.
        targeted: the label is a target.
        reduction: `"sum"`, `"mean"`, `"scaled"` (by another factor) or `"unknown"`.
        factor: 1, 1/batch or what fits best; negative where the attack descends.
    """

    name: str
    loss: Loss | None
    label: Tensor
    targeted: bool
    reduction: str
    factor: float

    @property
    def sign(self) -> int:
        """Whether the attack ascends the loss, 1, or descends it, -1."""
        return 1 if self.factor > 0 else -1


@dataclass(frozen=True, slots=True)
class _Step:
    """A backward pass; only `rows` must be explained."""

    logits: Tensor
    v: Tensor
    y: Tensor
    targets: Tensor | None
    rows: Tensor


@dataclass(frozen=True, slots=True)
class _Candidate:
    loss: Loss
    targeted: bool
    reduction: str
    sign: int


def recognise(
    logits: Tensor,
    v: Tensor,
    y: Tensor,
    targets: Tensor | None,
    losses: Sequence[str],
    last: Recognised | None = None,
) -> Recognised:
    """The loss of one backward pass.

    A candidate must explain every row that is not exactly zero to within the proved bound on the
    rounding error of its logit gradient (C&W, DLR: to 16 unit roundoffs of its largest entry). If
    several do, that of the step before, else the one that leaves least; a factor other than 1 and
    1/batch is looked for last.

    Args:
        logits: (batch, K).
        v: (batch, K), dL/dz.
        y: (batch,), the true labels.
        targets: (batch,); None: a targeted loss is looked for, whose target shows in v.
        losses: names to try beside the usual ones.
        last: what the step before was.
    """
    unknown = Recognised("unknown", None, y, targets is not None, "unknown", 1.0)
    if not bool(v.isfinite().all()) or not bool(logits.isfinite().all()):
        return unknown
    simple = _of_logits(v)
    if simple is not None:
        return Recognised(simple, None, y, targets is not None, "sum", 1.0)
    rows = v.ne(0).any(1)
    is_zero = not bool(rows.any())
    step = _Step(logits, v, y, targets, rows | is_zero)
    if last is not None and last.reduction != "unknown" and last.loss is not None:
        again = _tried(_Candidate(last.loss, last.targeted, last.reduction, last.sign), step)
        if again is not None:
            return again[0]
    for reductions in (("sum", "mean"), ("scaled",)):
        tries = (_tried(c, step) for c in _candidates(losses, targets is not None, reductions))
        found = [one for one in tries if one is not None]
        if found:
            best = min(found, key=lambda one: one[1])[0]
            # of nothing at all, the sum and the mean are the same
            return replace(best, reduction="unknown", factor=1.0) if is_zero else best
    return unknown


def _candidates(
    losses: Sequence[str], targets_known: bool, reductions: Sequence[str]
) -> Iterator[_Candidate]:
    for name in dict.fromkeys((*CANDIDATES, *losses)):
        for targeted in (True,) if targets_known else (False, True):
            for sign in (1, -1):
                for reduction in reductions:
                    yield _Candidate(named(name), targeted, reduction, sign)


def _tried(candidate: _Candidate, step: _Step) -> tuple[Recognised, float] | None:
    """The candidate, if it explains v, and what it leaves, relative to v."""
    loss, targeted, sign = candidate.loss, candidate.targeted, candidate.sign
    v, rows = step.v, step.rows
    label = step.y
    if targeted:
        label = (sign * v).argmax(1) if step.targets is None else step.targets
        if step.targets is None and bool((label == step.y).any()):
            return None
    if step.logits.shape[1] < loss.smallest_K(targeted=targeted):
        return None
    count = len(v) if candidate.reduction == "mean" else 1
    exact, tolerance = _exact(loss, step.logits, v, label, Context(targeted, step.y), count)
    factor = sign / count
    if candidate.reduction == "scaled":
        squares = exact[rows].square().sum()
        factor = float((v[rows].double() * exact[rows]).sum() / squares)
        if not (factor * sign > 0 and math.isfinite(factor)):
            return None
        # by Cauchy and Schwarz, the fitted factor is off by as much as all rows are together
        off = tolerance[rows].square().sum().sqrt() / squares.sqrt()
        tolerance = tolerance + off * (exact.abs() + tolerance)
    error = (v.to(torch.float64) / factor - exact).abs()
    if not bool((error <= tolerance)[rows].all()):
        return None
    left = float(error[rows].sum() / exact[rows].abs().sum())
    return Recognised(loss.name, loss, label, targeted, candidate.reduction, factor), left


def _exact(
    loss: Loss, logits: Tensor, v: Tensor, label: Tensor, context: Context, count: int
) -> tuple[Tensor, Tensor]:
    """The logit gradient (batch, K) of the summed loss, and how far a computed one may be off."""
    if loss.kind in ("cross_entropy", "stable_ce"):
        scale = loss.scale(logits, label, context)
        run = FloatGradient(logits, v, v, scale, (1.0, count), is_autocast=False)
        bound = logit_bound(run, label, loss)
        assert bound is not None
        mine = torch.zeros_like(bound.exact).scatter(1, label[:, None], 1.0).bool()
        signs = torch.where(mine == context.targeted, 1.0, -1.0)
        return signs * bound.exact, _SLACK * bound.error
    wide = logits.to(torch.float64).requires_grad_()
    with torch.enable_grad():
        (exact,) = torch.autograd.grad(loss(wide, label, context).sum(), wide)
    largest = exact.abs().amax(1, keepdim=True)
    return exact, _ROUNDINGS * of_dtype(logits.dtype).unit_roundoff * largest


def _of_logits(v: Tensor) -> str | None:
    """One logit's gradient, or the difference of two logits': 0, 1 and -1 alone."""
    known = (v == 0) | (v == 1) | (v == -1)
    if not bool(known.all()) or len(v) == 0:
        return None
    counts = {(int(a), int(b)) for a, b in zip((v == 1).sum(1), (v == -1).sum(1), strict=True)}
    if counts <= {(1, 0), (0, 1)}:
        return "logit"
    return None
