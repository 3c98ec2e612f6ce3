"""The directions of logit gradients for batches, against the closed forms in mpmath."""

import mpmath
import pytest
import torch

from fperr.exact.logit_direction import KINDS, is_order_unclear, logit_direction
from fperr.exact.logit_gradient import logit_gradient
from tests.conftest import normal

CONTEXT = mpmath.MPContext()
CONTEXT.prec = 300
SAMPLES, CLASSES = 40, 6


def exact(kind, z, label, c, y, *, targeted):
    numbers = [CONTEXT.mpf(value) for value in z.tolist()]
    return logit_gradient(
        kind, CONTEXT, numbers, int(label), c=CONTEXT.mpf(float(c)), targeted=targeted, y=int(y)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("size", [1.0, 60.0, 1000.0])
def test_directions_are_those_of_the_closed_forms(kind, targeted, size):
    z = size * normal(SAMPLES, CLASSES).double()
    label = torch.arange(SAMPLES) % CLASSES
    y, c = (label + 1) % CLASSES, torch.full((SAMPLES,), 0.7).double()
    found = logit_direction(kind, z, z, label, c, y, targeted=targeted)
    assert not is_order_unclear(kind, z, label, targeted=targeted).any()
    for i in range(SAMPLES):
        v = exact(kind, z[i], label[i], c[i], y[i], targeted=targeted)
        longest = max(abs(n) for n in v)
        if not longest:  # DLR is 1 where the label is the third of the classes
            assert not found[i].any()
            continue
        wanted = torch.tensor([float(n / longest) for n in v], dtype=torch.float64)
        ours = found[i] / found[i].abs().max()
        # the exponents are rounded, to 2^-53 of logits and scales of this size, a few times
        assert torch.allclose(ours, wanted, rtol=0, atol=2.0**-53 * (100 + 10 * size))


def test_a_wrong_sign_is_noticed():
    """Negative control of the comparison."""
    z, label = normal(1, CLASSES).double(), torch.tensor([2])
    found = logit_direction("cw", z, z, label, torch.ones(1), label, targeted=True)
    v = exact("cw", z[0], 2, 1.0, 2, targeted=False)
    assert not torch.allclose(found[0], torch.tensor([float(n) for n in v]).double())


@pytest.mark.parametrize(
    ("kind", "targeted", "logits", "is_unclear"),
    [
        ("cw", False, [5.0, 3.0, 3.0, 1.0, 0.0], True),  # two largest others of class 0
        ("cw", False, [5.0, 3.0, 1.0, 1.0, 0.0], False),
        ("dlr", False, [5.0, 3.0, 1.0, 1.0, 0.0], True),  # which of two is the third
        ("dlr", False, [5.0, 3.0, 1.0, 0.5, 0.5], False),
        ("dlr", True, [5.0, 3.0, 1.0, 0.5, 0.5], True),
        ("dlr", False, [5.0, 3.0, -torch.inf, -torch.inf, -torch.inf], True),  # undefined
        ("cross_entropy", False, [5.0, 5.0, 5.0, 5.0, 5.0], False),
        ("stable_ce", True, [5.0, 5.0, 5.0, 5.0, 5.0], False),
    ],
)
def test_close_logits_that_matter_are_seen(kind, targeted, logits, is_unclear):
    z, label = torch.tensor([logits]).double(), torch.tensor([0])
    assert is_order_unclear(kind, z, label, targeted=targeted).tolist() == [is_unclear]


def test_a_masked_class_has_no_direction():
    z = torch.tensor([[2.0, -torch.inf, 1.0, 0.5, 0.0]]).double()
    label, c = torch.tensor([2]), torch.ones(1).double()
    for kind in KINDS:
        v = logit_direction(kind, z, z, label, c, torch.tensor([0]), targeted=False)
        assert v[0, 1] == 0
        assert v.isfinite().all()
