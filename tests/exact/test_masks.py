"""Masked attention: minus infinity and large negative numbers stay on the float rungs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fperr import exact
from fperr.exact.double_word import DoubleWordArithmetic
from tests.conftest import normal, seeded

WIDTH = 8


class Masked(nn.Module):
    """Causal attention of one head, with any kind of mask.

    Args:
        attend: Function of scores and of the mask of what may be attended to, to weights.
    """

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        h = self.norm(x)
        scores = self.query(h) @ self.key(h).mT / math.sqrt(WIDTH)
        may = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        return self.head((self.attend(scores, may) @ self.value(h)).mean(1))


class Causal(Masked):
    """The same, by PyTorch's own function."""

    def forward(self, x):
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


def filled(number):
    return lambda scores, may: scores.masked_fill(~may, number).softmax(-1)


def added(number):
    return lambda scores, may: (scores + torch.where(may, 0.0, number)).softmax(-1)


LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "is_causal": lambda: Causal(None),
    "filled with -inf": lambda: Masked(filled(-math.inf)),
    "filled with the lowest": lambda: Masked(filled(LOWEST)),
    "filled with -1e9": lambda: Masked(filled(-1e9)),
    "-inf added": lambda: Masked(added(-math.inf)),
    "-1e9 added": lambda: Masked(added(-1e9)),
    "-600 added": lambda: Masked(added(-600.0)),
    "saturated": lambda: Masked(lambda scores, may: (900 * scores).softmax(-1) * may),
}


@pytest.mark.parametrize("engine", ["float64", "double_word"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_stay_on_the_float_rungs(mask, engine):
    model, x, v = seeded(MASKS[mask]()), normal(3, 6, WIDTH), normal(3, 5)
    digits = 20 if engine == "double_word" else None  # what delta of float64 needs
    found = exact.gradient(model, x, v, engine=engine, digits=digits)
    assert "balls" not in found.engine
    if engine == "float64" and mask != "saturated":  # where some samples may climb
        assert "pairs" not in found.engine
        assert set(found.certainty) == {"agreed"}
    balls = exact.gradient(model, x, v, engine="ball", digits=40).midpoint
    for numbers, truth, claim in zip(found.midpoint, balls, found.log2_errors, strict=True):
        assert norm(numbers - truth) <= 2.0**claim * norm(truth)


def norm(numbers):
    return float(sum(number**2 for number in numbers.reshape(-1))) ** 0.5


def test_a_mask_costs_pairs_no_digits():
    x, v = normal(3, 6, WIDTH), normal(3, 5)
    masked, plain = (
        exact.gradient(seeded(Masked(attend)), x, v, engine="double_word").log2_error
        for attend in (filled(-1e9), lambda scores, _: scores.softmax(-1))
    )
    assert masked < plain + 15  # log2 of 1e9 is 30


def test_only_minus_infinity_masks():
    A = DoubleWordArithmetic()
    ends = torch.tensor([-math.inf, math.inf, -(2.0**1023)], dtype=torch.float64)
    masked, infinite, largest = (A.from_torch(torch.stack([end, end.new_ones(())])) for end in ends)
    ones = A.from_torch(torch.ones(2, dtype=torch.float64))
    assert A.add(ones, masked).high[0].tolist() == [-math.inf, 2.0]
    assert A.add(ones, masked).radius.isfinite().all()
    assert A.sub(masked, ones).radius.isfinite().all()
    assert not A.add(ones, infinite).radius.isfinite().any()
    assert not A.sub(ones, masked).radius.isfinite().any()
    assert not A.add(masked, infinite).radius.isfinite().any()
    assert not A.add(A.add(largest, largest), masked).radius.isfinite().any()
