"""Directions of logit gradients in floating point, against the closed forms in mpmath."""

import itertools

import pytest
import torch
from mpmath import MPContext

from fperr.exact.logit_direction import CLOSE, KINDS, is_order_unclear, logit_direction
from fperr.exact.logit_gradient import logit_gradient

CONTEXT = MPContext()
CONTEXT.prec = 300
CLASSES = 6
# roundings of a handful of operations on logits of size 1, relative to the largest entry
TOLERANCE = 2.0**-45


def logits(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, CLASSES, dtype=torch.float64, generator=generator)


def exact_direction(kind, row, label, y, *, targeted):
    """v in mpmath, divided by its largest magnitude."""
    z = [CONTEXT.mpf(value) for value in row.tolist()]
    v = logit_gradient(kind, CONTEXT, z, label, c=CONTEXT.mpf(1), targeted=targeted, y=y)
    # DLR is constant where the label has the third largest logit
    size = max(abs(value) for value in v) or CONTEXT.one
    return torch.tensor([float(value / size) for value in v], dtype=torch.float64)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_those_of_the_closed_forms(kind, targeted):
    z = logits()
    for label, y in itertools.permutations(range(3), 2):
        labels, true = (torch.full((len(z),), k) for k in (label, y))
        ones = torch.ones(len(z), dtype=torch.float64)
        v = logit_direction(kind, z, z, labels, ones, targeted=targeted, y=true)
        size = v.abs().amax(1, keepdim=True)
        v = v / torch.where(size == 0, 1.0, size)
        for row, direction in zip(z, v, strict=True):
            exact = exact_direction(kind, row, label, y, targeted=targeted)
            assert ((direction - exact).abs() <= TOLERANCE).all(), (kind, label, y)


def test_the_order_is_that_of_the_leading_run():
    """float32 swaps two close classes; the direction must not follow it."""
    leading = torch.tensor([[3.0, 2.0, 1.0 + 1e-9, 1.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[3.0, 2.0, 1.0, 1.0 + 1e-7, 0.0]])
    for kind in ("cw", "dlr"):
        label, ones = torch.tensor([1]), torch.ones(1, dtype=torch.float64)
        v = logit_direction(kind, z, leading, label, ones, targeted=False)
        assert float(v[0, 3]) == 0.0


@pytest.mark.parametrize(
    ("z", "targeted", "unclear"),
    [
        ([4.0, 3.0, 2.0, 1.0, 0.0], False, False),
        ([4.0, 4.0 - CLOSE, 2.0, 1.0, 0.0], False, True),
        ([4.0, 3.0, 3.0 - CLOSE, 1.0, 0.0], False, True),
        ([4.0, 3.0, 2.0, 2.0 - CLOSE, 0.0], False, True),
        # the third and the fourth class have equal weights
        ([4.0, 3.0, 2.0, 2.0 - CLOSE, 0.0], True, False),
        ([4.0, 3.0, 2.0, 1.0, 1.0 - CLOSE / 2], True, True),
        ([4.0, 3.0, 2.0, 1.0, 1.0 - CLOSE / 2], False, False),
        ([4.0, 3.0, -torch.inf, -torch.inf, -torch.inf], False, True),
        ([4.0, 3.0, 2.0, -torch.inf, -torch.inf], True, True),
        ([4.0, 3.0, 2.0, -torch.inf, -torch.inf], False, False),
    ],
)
def test_where_the_order_of_the_ratio_is_unclear(z, targeted, unclear):
    leading = torch.tensor([z], dtype=torch.float64)
    y = torch.tensor([1]) if targeted else None
    found = is_order_unclear("dlr", leading, torch.tensor([0]), y)
    assert bool(found) is unclear
