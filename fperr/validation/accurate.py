"""Attempts to refute the bounds on accurate cross-entropy: errors of direction and of length."""

import itertools
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Generator, Tensor

from fperr.bounds.accurate import AccurateBound, accurate_cross_entropy
from fperr.bounds.arguments import format_of
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.losses import cross_entropy
from fperr.validation.hill_climbing import climb
from fperr.validation.logit_gradients import signed_gradient
from fperr.validation.trial_logits import KINDS, TrialLogits, draw

FORMATS = ("float16", "bfloat16", "float32", "float64")
_CLASSES = (2, 3, 5, 10, 10, 10, 30, 100, 1000)
_LOGITS_PER_BATCH, _LARGEST_BATCH, _SMALLEST_BATCH = 160_000, 4000, 100
_SEARCHED = 256  # worst cases with which a search begins
_STEPS = 60  # of a search
_SEARCH_EVERY = 3  # batches of random cases for each search
_SMALLEST = 2.0**-900  # of P: the double words of smaller numbers underflow
GradientFunction = Callable[[Tensor, Tensor], Tensor]
BoundFunction = Callable[[Tensor, Tensor], AccurateBound]


def computed_gradient(z: Tensor, label: Tensor) -> Tensor:
    """The gradient of `fperr.losses.cross_entropy` with respect to logits (batch, K)."""
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(leaf, label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


@in_neutral_state
def falsify_accurate(
    formats: Sequence[str] = FORMATS,
    cases: int = 100_000,
    *,
    computed: GradientFunction = computed_gradient,
    bound: BoundFunction = accurate_cross_entropy,
    seed: int = 0,
) -> pd.DataFrame:
    """Try to refute the bounds, on at least `cases` logit vectors of each format.

    Args:
        formats: Names of the formats.
        cases: Number of logit vectors for each format, those of the search included.
        computed: Function that computes the gradient under test. A negative control puts another
            in its place.
        bound: The bound under test. A negative control leaves a term out.
        seed: Seed of the random numbers.

    Returns:
        A row for each case in range. Columns: `format`, `K`, `margin` (|z_y - m|), `is_searched`,
        and for direction and length the error, the bound, and their ratio, e.g.
        `direction_error`, `direction_bound`, `direction_ratio`.
    """
    frames = []
    for name in formats:
        fmt, count = format_of(name), 0
        generator = torch.Generator().manual_seed(seed)
        batch = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, cases // 60))
        for turn in itertools.count():
            if count >= cases:
                break
            K, kind = _CLASSES[turn % len(_CLASSES)], list(KINDS)[turn % len(KINDS)]
            drawn = _plain(draw(kind, min(batch, _LOGITS_PER_BATCH // K), K, fmt, generator))
            trials = [(drawn, False)]
            if turn % _SEARCH_EVERY == 0:
                trials.append((_worst(drawn, fmt, generator, computed, bound), True))
            for trial, is_searched in trials:
                frame = errors_and_bounds(trial.z, trial.label, computed, bound)
                frames.append(frame.assign(format=name, K=K, is_searched=is_searched))
                count += len(trial)
    return pd.concat(frames, ignore_index=True)


def errors_and_bounds(
    z: Tensor,
    label: Tensor,
    computed: GradientFunction = computed_gradient,
    bound: BoundFunction = accurate_cross_entropy,
) -> pd.DataFrame:
    """The columns of `falsify_accurate` that depend on logits (batch, K) and labels alone."""
    errors, bounds = _errors(z, label, computed(z, label)), bound(z, label)
    others = z.double().scatter(1, label[:, None], -torch.inf)
    own = z.double().gather(1, label[:, None])[:, 0]
    frame = pd.DataFrame({"margin": (own - others.amax(1)).abs().numpy()})
    for name, error, limit in zip(
        ("direction", "length"), errors, (bounds.direction, bounds.length), strict=True
    ):
        frame[f"{name}_error"], frame[f"{name}_bound"] = error.numpy(), limit.numpy()
        frame[f"{name}_ratio"] = torch.where(error > 0, error / limit, 0.0).numpy()
    return frame[_are_judged(z, label, bounds).numpy()]


def _errors(z: Tensor, label: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds on the errors of direction and of length, (batch,) each.

    v_hat is v (1 + a) + r, with r orthogonal to v: the angle between the two has the sine |r|/|v|
    up to a second order, and the length is off by a up to |r|^2.
    """
    high, low, accuracy = signed_gradient(z, label)
    # where |v| is tiny, squares vanish; a power of two scales without rounding
    power = torch.frexp(high.abs().amax(1, keepdim=True)).exponent
    v_hat, v, v_low = (torch.ldexp(t, -power) for t in (gradient.double(), high, low))
    difference, square = (v_hat - v) - v_low, v.square().sum(1, keepdim=True)
    a = (difference * v).sum(1, keepdim=True) / square
    r = torch.linalg.vector_norm(difference - a * v, dim=1) / square[:, 0].sqrt()
    length = a[:, 0].abs() - r.square()
    return (r / (1 + a[:, 0].abs()) - accuracy).clamp_min(0.0), (length - accuracy).clamp_min(0.0)


def _are_judged(z: Tensor, label: Tensor, bounds: AccurateBound) -> Tensor:
    """Which cases have a bound, and a reference with its digits, (batch,) bool."""
    own = z.double().gather(1, label[:, None])[:, 0]
    others = z.double().scatter(1, label[:, None], -torch.inf)
    return bounds.is_in_range & (torch.sigmoid(others.logsumexp(1) - own) > _SMALLEST)


def _plain(cases: TrialLogits) -> TrialLogits:
    """The cases as plain cross-entropy."""
    ones = torch.ones_like(cases.c)
    untargeted = torch.zeros_like(cases.targeted)
    return TrialLogits(cases.z, cases.label, ones, untargeted, 1.0, is_shifted=False)


def _worst(
    cases: TrialLogits,
    fmt: Format,
    generator: Generator,
    computed: GradientFunction,
    bound: BoundFunction,
) -> TrialLogits:
    """The cases that a search reaches from those with the largest ratio of error to bound."""

    def ratio(trial: TrialLogits) -> Tensor:
        errors, bounds = (
            _errors(trial.z, trial.label, computed(trial.z, trial.label)),
            bound(trial.z, trial.label),
        )
        pairs = zip(errors, (bounds.direction, bounds.length), strict=True)
        ratios = [torch.where(error > 0, error / limit, 0.0) for error, limit in pairs]
        are_judged = _are_judged(trial.z, trial.label, bounds)
        return torch.where(are_judged, torch.stack(ratios).amax(0), 0.0)

    best = ratio(cases).argsort(descending=True)[: min(_SEARCHED, max(1, len(cases) // 10))]
    return climb(cases.select(best), ratio, fmt, _STEPS, generator)
