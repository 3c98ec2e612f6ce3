"""The search for the loss that an attack follows, by its dL/dz."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fperr.losses import loss_named
from fperr.recording.attack_step import AttackStep
from fperr.recording.factors import ones
from fperr.recording.loss_fit import (
    Candidate,
    LogitGradients,
    RecognisedLoss,
    fitted,
    fitted_user_loss,
)
from fperr.recording.loss_function import UserLoss

CANDIDATES = ("ce", "stable_ce", "cw", "dlr", "mifpe", "tmifpe", "mifpe_shifted", "tmifpe_shifted")


def recognise_all(
    steps: Sequence[AttackStep],
    losses: Sequence[str],
    last: RecognisedLoss | None,
    hint: str | UserLoss | None,
) -> list[RecognisedLoss]:
    """The losses of several backward passes: `recognise` for each of them, after the one before.

    An attack rarely changes its loss: the last one is tried for all of them at once.

    Args:
        steps: Backward passes, in order.
        losses: Names to try beside the usual ones.
        last: Loss of the step before these.
        hint: Loss that the user named or gave, see `recognise`.
    """
    recognised: list[RecognisedLoss] = []
    is_tried = False
    for i, step in enumerate(steps):
        if last is not None and last.reduction != "unknown" and not is_tried:
            is_tried = True
            together = _all_as(last, steps[i:])
            if together is not None:
                return recognised + together
        last = recognise(step.logits, step.v, step.y, step.targets, losses, last, hint)
        recognised.append(last)
    return recognised


def _all_as(last: RecognisedLoss, steps: Sequence[AttackStep]) -> list[RecognisedLoss] | None:
    """The loss of the step before for each of these steps, if it explains all of them."""
    counts = [len(step.samples) for step in steps]
    if len(set(counts)) > 1:
        return None
    logits, v, y = (torch.cat([getattr(s, n) for s in steps]) for n in ("logits", "v", "y"))
    targets = [s.targets for s in steps if s.targets is not None]
    together = LogitGradients(logits, v, y, torch.cat(targets) if targets else None, counts[0])
    loss = together.refitted(last)
    if loss is None:
        return None
    by_step = (torch.split(rows, counts) for rows in (loss.label, loss.explained, loss.factor))
    return [
        replace(loss, label=label, explained=explained, factor=factor)
        for label, explained, factor in zip(*by_step, strict=True)
    ]


def recognise(
    logits: Tensor,
    v: Tensor,
    y: Tensor,
    targets: Tensor | None,
    losses: Sequence[str],
    last: RecognisedLoss | None = None,
    hint: str | UserLoss | None = None,
) -> RecognisedLoss:
    """The loss of one backward pass.

    A candidate must explain every row that is finite and not exactly zero to within the proved
    bound on the rounding error of its logit gradient (C&W, DLR: to 16 unit roundoffs of its largest
    entry). A row of zeros is explained where that bound allows zeros, else it counts as masked.

    If several candidates explain the rows, the order is: the loss of the step before,
    cross-entropy, the one that leaves least. Factors other than 1 and 1/batch are tried last, and
    one for each row after that. Where too few entries of a row stand out of the rounding to show
    its own factor, the loss of the row stays unknown.

    Args:
        logits: (batch, K), the logits.
        v: (batch, K), dL/dz.
        y: (batch,) int64, the true labels.
        targets: (batch,) int64, the targets; None: a targeted loss is looked for, too, whose target
            shows in v.
        losses: Names to try beside the usual ones.
        last: Loss of the step before.
        hint: Name of the loss to take where v is zero everywhere, if it explains that; or the
            user's own loss, which is tried first.
    """
    step = LogitGradients(logits, v, y, targets, len(v))
    has_targets = targets is not None
    unknown = RecognisedLoss("unknown", None, y, has_targets, step.is_finite, "unknown", ones(v))
    if isinstance(hint, UserLoss):
        fit_of_hint = fitted_user_loss(hint, step)
        if fit_of_hint is not None:
            return fit_of_hint
        hint = None
    if _is_logit(v):
        return replace(unknown, name="logit", reduction="sum")
    as_before = None if last is None else step.refitted(last)
    if as_before is not None:
        return as_before
    if not bool(step.is_required.any()):
        guess = None
        if hint is not None:
            guess = fitted(Candidate(loss_named(hint), has_targets, "sum", 1), step)
        if guess is None or not bool(guess[0].explained.any()):
            return replace(unknown, name="zero")
        return replace(guess[0], reduction="unknown")  # of nothing, sum and mean are the same
    for reductions in (("sum", "mean"), ("scaled",), ("by sample",)):
        for names in (CANDIDATES[:1], (*CANDIDATES[1:], *losses)):
            fits = (fitted(c, step) for c in _candidates(names, has_targets, reductions))
            successful = [fit for fit in fits if fit is not None]
            if successful:
                return min(successful, key=lambda fit: fit[1])[0]  # that leaves least of v
    return unknown


def _candidates(
    names: Sequence[str], has_targets: bool, reductions: Sequence[str]
) -> Iterator[Candidate]:
    for name in dict.fromkeys(names):
        for targeted in (True,) if has_targets else (False, True):
            for sign in (1, -1):
                for reduction in reductions:
                    yield Candidate(loss_named(name), targeted, reduction, sign)


def _is_logit(v: Tensor) -> bool:
    """Whether each row is the gradient of one logit, or its negative: FAB takes them one by one."""
    return bool(((v != 0).sum(1) == 1).all()) and bool((v.abs().sum(1) == 1).all())
