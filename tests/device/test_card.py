"""A card's own kernels: what the emulation and the bounds say of them."""

import pytest
import torch

from fperr.bounds.kernels import DOCUMENTED
from tests.benchmarks import card_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROUNDED_ONCE = ["add", "sub", "mul", "div", "maximum", "relu", "sqrt", "sum", "mean"]


def test_operands_of_tf32_are_rounded_to_nearest():
    shares = card_kernels.operand_rounding()
    assert (shares["nearest_away"] == 1).all()
    assert (shares["truncated"] < 0.6).all()  # half of all operands are rounded up
    assert (shares["none"] < 0.01).all()


def test_half_operations_are_the_emulated_ones():
    """Those that IEEE 754 defines, and sums so short that their order is lost in the rounding."""
    frame = card_kernels.half_operations()
    exact = frame[frame["operation"].isin(ROUNDED_ONCE[:7])]
    assert len(exact) == 14
    assert (exact["equal"] == 1).all(), exact
    assert (frame["NaN on one side"] == 0).all()


def test_sums_of_products_stay_within_their_bound():
    """n units of 2^-24 of the sum of absolute terms; twice that where additions are truncated."""
    frame = card_kernels.accumulation()
    factor = frame["format"].map({"float32": 1}).fillna(2)
    assert (frame["largest"] <= factor * frame["n"] * (1 + 1e-3)).all(), frame


def test_logit_gradients_stay_within_their_bounds():
    assert (card_kernels.bounds()["ratio"] <= 1).all()
    # negative control: CUDA's expf is not within 1 ulp
    narrow = card_kernels.bounds(DOCUMENTED)
    assert narrow[narrow["format"] == "float32"]["ratio"].max() > 1
