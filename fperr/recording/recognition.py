"""Which loss an attack follows, and how it puts a batch together, from its dL/dz."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.formats import of_dtype
from fperr.gradient_error.loss_bound import logit_bound
from fperr.losses import Context, Loss, loss_named
from fperr.networks.in_format import FloatGradient
from fperr.recording.attack_step import AttackStep
from fperr.recording.factors import LEAST_SEEN, LEAST_SEEN_OF_CW, matched, ones
from fperr.recording.loss_function import GivenLoss

CANDIDATES = ("ce", "stable_ce", "cw", "dlr", "mifpe", "tmifpe", "mifpe_shifted", "tmifpe_shifted")
# a library's kernel may differ from the one that the bound models in the order of its operations
_SLACK = 2.0
_OWN_ERRORS = 4.0  # a function's tolerance, in units of the error that float64 sees in it
_SCALES = (1.0, 0.7, 1.3, 1.9, 0.11)  # of a loss, none a power of two of another
_ROUNDINGS = 16  # of C&W and DLR: eight operations, each at most one rounding of input and output


@dataclass(frozen=True, slots=True)
class Recognised:
    """dL/dz = factor * (the logit gradient of `loss`, ascended), within rounding.

    Attributes:
        name: of the loss; `"logit"` for the gradient of one logit; `"zero"` for none at all, where
            no step before tells; `"unknown"`.
        loss: the loss, where it is one of the registry.
        label: (batch,) the class that it uses; y where it is unknown.
        targeted: the label is a target.
        explained: (batch,) the rows that it explains; the others are zero where the loss cannot
            be, masked perhaps, or not finite.
        reduction: `"sum"`, `"mean"`, `"scaled"` (by another factor), `"by sample"` (by one for
            each row) or `"unknown"`.
        factor: (batch,) float64: 1, 1/batch or what fits best; negative where the attack descends.
        given: the loss, where it is a function of the user's.
    """

    name: str
    loss: Loss | None
    label: Tensor
    targeted: bool
    explained: Tensor
    reduction: str
    factor: Tensor
    given: GivenLoss | None = None

    @property
    def is_known(self) -> bool:
        """The loss has an exact gradient at the rows that it explains."""
        return self.loss is not None or self.given is not None

    @property
    def sign(self) -> int:
        """Whether the attack ascends the loss, 1, or descends it, -1."""
        return 1 if bool((self.factor > 0).any()) else -1


@dataclass(frozen=True, slots=True)
class _Candidate:
    loss: Loss
    targeted: bool
    reduction: str
    sign: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """One or several backward passes, of `batch` rows each; arguments as for `recognise`."""

    logits: Tensor
    v: Tensor
    y: Tensor
    targets: Tensor | None
    batch: int

    @property
    def rows(self) -> Tensor:
        """(rows,): those that must be explained: finite ones that are not exactly zero."""
        return self.v.ne(0).any(1) & self.is_finite

    @property
    def is_finite(self) -> Tensor:
        """(rows,): logits, but for absent classes, and their gradient are."""
        z = self.logits
        return self.v.isfinite().all(1) & ~(z.isnan() | z.isposinf()).any(1)

    def tried_again(self, last: Recognised) -> Recognised | None:
        """What the step before was, if it explains this one, too."""
        if last.given is not None and last.reduction != "unknown":
            return _as_given(last.given, self)
        if last.reduction == "unknown" or last.loss is None:
            return None
        if self._is_bit_by_bit(last.loss, last):
            everything = torch.ones(len(self.v), dtype=torch.bool, device=self.v.device)
            label = self.y if self.targets is None else self.targets
            factor = last.factor[:1].expand(len(self.v))
            return replace(last, label=label, explained=everything, factor=factor)
        again = _tried(_Candidate(last.loss, last.targeted, last.reduction, last.sign), self)
        return None if again is None else again[0]

    def _is_bit_by_bit(self, loss: Loss, last: Recognised) -> bool:
        """V is PyTorch's own gradient of the loss: no bound is needed to see that."""
        if last.reduction in ("scaled", "by sample") or last.targeted != (self.targets is not None):
            return False
        label = self.y if self.targets is None else self.targets
        with torch.enable_grad():
            leaf = self.logits.clone().requires_grad_()
            losses = loss(leaf, label, Context(last.targeted, self.y))
            (found,) = torch.autograd.grad(
                losses, leaf, last.factor[:1].expand(len(losses)).to(losses)
            )
        return torch.equal(found, self.v)


def recognise_all(
    steps: Sequence[AttackStep],
    losses: Sequence[str],
    last: Recognised | None,
    hint: str | GivenLoss | None,
) -> list[Recognised]:
    """The losses of several backward passes: `recognise` for each of them, after the one before.

    An attack rarely changes its loss: the last one is tried for all of them at once.
    """
    found: list[Recognised] = []
    is_tried = False
    for i, s in enumerate(steps):
        if last is not None and last.reduction != "unknown" and not is_tried:
            is_tried = True
            together = _all_as(last, steps[i:])
            if together is not None:
                return found + together
        last = recognise(s.logits, s.v, s.y, s.targets, losses, last, hint)
        found.append(last)
    return found


def _all_as(last: Recognised, steps: Sequence[AttackStep]) -> list[Recognised] | None:
    """All of them the same as the one before, if that explains them."""
    counts = [len(step.samples) for step in steps]
    if len(set(counts)) > 1:
        return None
    logits, v, y = (torch.cat([getattr(s, n) for s in steps]) for n in ("logits", "v", "y"))
    targets = [s.targets for s in steps if s.targets is not None]
    whole = _Pass(logits, v, y, torch.cat(targets) if targets else None, counts[0])
    again = whole.tried_again(last)
    if again is None:
        return None
    rows = (torch.split(part, counts) for part in (again.label, again.explained, again.factor))
    return [
        replace(again, label=label, explained=explained, factor=factor)
        for label, explained, factor in zip(*rows, strict=True)
    ]


def recognise(
    logits: Tensor,
    v: Tensor,
    y: Tensor,
    targets: Tensor | None,
    losses: Sequence[str],
    last: Recognised | None = None,
    hint: str | GivenLoss | None = None,
) -> Recognised:
    """The loss of one backward pass.

    A candidate must explain every row that is finite and not exactly zero to within the proved
    bound on the rounding error of its logit gradient (C&W, DLR: to 16 unit roundoffs of its largest
    entry); zero rows are its own where that bound allows them, else they count as masked. If
    several do, that of the step before, else cross-entropy, else the one that leaves least; a
    factor other than 1 and 1/batch is looked for last, and one for each row after that: of rows
    that cannot tell it, too few of whose entries stand out of the rounding, the loss stays unknown.

    Args:
        logits: (batch, K).
        v: (batch, K), dL/dz.
        y: (batch,), the true labels.
        targets: (batch,); None: a targeted loss is looked for, whose target shows in v.
        losses: names to try beside the usual ones.
        last: what the step before was.
        hint: the name of the loss to take where v is zero everywhere, if it explains that; or the
            loss itself, which is tried first.
    """
    step = _Pass(logits, v, y, targets, len(v))
    known = targets is not None
    unknown = Recognised("unknown", None, y, known, step.is_finite, "unknown", ones(v))
    if isinstance(hint, GivenLoss):
        given = _as_given(hint, step)
        if given is not None:
            return given
        hint = None
    if _is_logit(v):
        return replace(unknown, name="logit", reduction="sum")
    again = None if last is None else step.tried_again(last)
    if again is not None:
        return again
    if not bool(step.rows.any()):
        guess = None
        if hint is not None:
            guess = _tried(_Candidate(loss_named(hint), known, "sum", 1), step)
        if guess is None or not bool(guess[0].explained.any()):
            return replace(unknown, name="zero")
        return replace(guess[0], reduction="unknown")  # of nothing, sum and mean are the same
    for reductions in (("sum", "mean"), ("scaled",), ("by sample",)):
        for names in (CANDIDATES[:1], (*CANDIDATES[1:], *losses)):
            tries = (_tried(c, step) for c in _candidates(names, known, reductions))
            found = [one for one in tries if one is not None]
            if found:
                return min(found, key=lambda one: one[1])[0]
    return unknown


def _candidates(
    names: Sequence[str], targets_known: bool, reductions: Sequence[str]
) -> Iterator[_Candidate]:
    for name in dict.fromkeys(names):
        for targeted in (True,) if targets_known else (False, True):
            for sign in (1, -1):
                for reduction in reductions:
                    yield _Candidate(loss_named(name), targeted, reduction, sign)


def _tried(candidate: _Candidate, step: _Pass) -> tuple[Recognised, float] | None:
    """The candidate, if it explains v, and what it leaves, relative to v."""
    loss, targeted, sign = candidate.loss, candidate.targeted, candidate.sign
    v, rows = step.v, step.rows
    label = step.y
    if targeted:
        label = (sign * v).argmax(1) if step.targets is None else step.targets
        if step.targets is None and bool((label == step.y)[rows].any()):
            return None
    if step.logits.shape[1] < loss.smallest_K(targeted=targeted):
        return None
    if not _has_signs(loss, sign * v[rows], label[rows], targeted=targeted):
        return None
    count = step.batch if candidate.reduction == "mean" else 1
    exact, tolerance = _exact(loss, step.logits, v, label, Context(targeted, step.y), count)
    least = LEAST_SEEN_OF_CW if loss.kind == "cw" else LEAST_SEEN
    fit = matched(step.v, step.rows, step.batch, exact, tolerance, candidate.reduction, sign, least)
    if fit is None:
        return None
    factor, explained = fit
    shown = rows & explained
    wide, nearest = v.to(torch.float64), factor[:, None]
    if candidate.reduction == "scaled":  # what is compared between losses is what any factor leaves
        nearest = (wide[rows] * exact[rows]).sum() / exact[rows].square().sum()
    error = (wide / nearest - exact).abs()
    left = float(error[shown].sum() / exact[shown].abs().sum())
    found = Recognised(loss.name, loss, label, targeted, explained, candidate.reduction, factor)
    return found, left


def _as_given(loss: GivenLoss, step: _Pass) -> Recognised | None:
    """The user's own loss, if it explains v.

    Bit by bit, or to within a few times what it is off in the attack's format: the difference to
    float64 at the same logits.
    """
    v, is_targeted = step.v, step.targets is not None
    label = step.y if step.targets is None else step.targets
    found = Recognised(loss.name, None, label, is_targeted, step.is_finite, "sum", ones(v), loss)
    for sign in (1, -1):
        for reduction, count in (("sum", 1), ("mean", step.batch)):
            own = loss.gradient(step.logits, step.y, step.targets, sign / count)
            if torch.equal(own[step.is_finite], v[step.is_finite]):
                is_told = bool(step.rows.any())
                factor = ones(v) * sign / count if is_told else ones(v)
                return replace(found, reduction=reduction if is_told else "unknown", factor=factor)
    if not bool(step.rows.any()):
        return None
    exact = loss.gradient(step.logits.to(torch.float64), step.y, step.targets)
    largest = exact.abs().amax(1, keepdim=True)
    tolerance = _ROUNDINGS * of_dtype(step.logits.dtype).unit_roundoff * largest
    for scale in _SCALES:  # what cancels comes out otherwise with another factor
        own = loss.gradient(step.logits, step.y, step.targets, scale).to(torch.float64)
        tolerance = tolerance.maximum(_OWN_ERRORS * (own / scale - exact).abs())
    for reduction in ("sum", "mean", "scaled", "by sample"):
        for sign in (1, -1):
            fit = matched(
                step.v, step.rows, step.batch, exact, tolerance, reduction, sign, LEAST_SEEN_OF_CW
            )
            if fit is not None:
                factors, explained = fit
                return replace(found, explained=explained, reduction=reduction, factor=factors)
    return None


def _has_signs(loss: Loss, v: Tensor, label: Tensor, *, targeted: bool) -> bool:
    """The label's entry has one sign and no other entry has it: so for every loss but DLR."""
    if loss.kind == "dlr":
        return True
    away = -v if targeted else v
    mine = torch.zeros_like(v, dtype=torch.bool).scatter(1, label[:, None], value=True)
    return bool(torch.where(mine, away <= 0, away >= 0).all())


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
    tolerance = _ROUNDINGS * of_dtype(logits.dtype).unit_roundoff * largest
    return exact, tolerance.expand_as(exact)


def _is_logit(v: Tensor) -> bool:
    """Each row is the gradient of one logit, or of its negative: FAB takes them one by one."""
    return bool(((v != 0).sum(1) == 1).all()) and bool((v.abs().sum(1) == 1).all())
