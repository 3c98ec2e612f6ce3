"""Exact zeros under roots, logarithms and in denominators: PyTorch's value, or the sample named."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import exact
from fperr.errors import SingularGradientError
from tests.conftest import Of, at_most, normal


def network(function, width=6):
    """A function between two layers: the module that calls it has a name."""
    model = nn.Sequential()
    model.add_module("head", Of(function))
    model.add_module("last", nn.Linear(width, 4))
    with torch.no_grad():
        model.last.weight.copy_(normal(4, width, seed=7))
        model.last.bias.copy_(normal(4, seed=8))
    return model.double().eval()


def inputs():
    """Three samples, the second of them zero."""
    x = 0.5 + normal(3, 6, seed=3).abs().double()
    x[1] = 0.0
    return x


# functions to which PyTorch gives a slope at 0, by convention or because a mask leaves it out
REGULAR = {
    "norm": lambda x: x * x.norm(dim=1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "norm and a constant": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-12),
    "masked quotient": lambda x: torch.where(x > 0, x**3 / torch.where(x > 0, x, 1.0), x),
    "masked root": lambda x: torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), x),
    "square": lambda x: x**2 + x**3,
    "absolute value": torch.abs,
    "divided by itself and one": lambda x: x / (x + 1),
}
# functions that have none, with the operation to blame
SINGULAR = {
    "square root": (torch.sqrt, "aten.sqrt.default"),
    "root of a square": (lambda x: (x * x).sqrt(), "aten.sqrt.default"),
    "root of a sum": (
        lambda x: (x * x).sum(1, keepdim=True).sqrt() * (x + 1),
        "aten.sqrt.default",
    ),
    "masked logarithm": (
        lambda x: torch.where(x > 0, x.log(), torch.zeros_like(x)),
        "aten.log.default",
    ),
}


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize("function", REGULAR.values(), ids=REGULAR)
def test_pytorchs_slope_at_zero_is_taken_where_it_has_one(function, engine):
    model, x, v = network(function), inputs(), normal(3, 4, seed=5).double()
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    assert bool(theirs.isfinite().all())
    found = exact.gradient(model, x, v, engine=engine, digits=at_most(engine, 20))
    error = (found.to_torch() - theirs).norm(dim=1)
    # sums of 6 terms, four of them in a row at most, whose terms cancel by a factor below 8
    assert bool((error <= 8 * 4 * 6 * 2.0**-53 * theirs.norm(dim=1)).all())
    assert {a.verdict for a in found.audits} == {"confirmed"}


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize(("function", "operation"), SINGULAR.values(), ids=SINGULAR)
def test_an_infinite_slope_names_sample_operation_and_module(function, operation, engine):
    model, x, v = network(function), inputs(), normal(3, 4, seed=5).double()
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    assert theirs.isfinite().all(1).tolist() == [True, False, True]
    with pytest.raises(SingularGradientError) as refusal:
        exact.gradient(model, x, v, engine=engine, digits=at_most(engine, 20))
    assert f"infinite slope at sample 1: {operation} in head (Of) at 0" in str(refusal.value)
    # the remedies: the sample left out, or the argument kept away from 0
    kept = exact.gradient(
        model, x[[0, 2]], v[[0, 2]], engine=engine, digits=at_most(engine, 20)
    ).to_torch()
    error = (kept - theirs[[0, 2]]).norm(dim=1) / theirs[[0, 2]].norm(dim=1)
    assert float(error.max()) < 8 * 4 * 6 * 2.0**-53
    x[1] = 0.25
    assert len(exact.gradient(model, x, v, engine=engine, digits=at_most(engine, 20)).audits) == 3


@pytest.mark.parametrize("engine", ["mpmath", "ball", "double_word"])
@pytest.mark.parametrize("jacobian", ["rows", "products"])
def test_a_measurement_marks_the_sample_and_goes_on(engine, jacobian):
    options = {"engine": engine, "jacobian": jacobian, "progress": False}
    with pytest.warns(UserWarning, match=r"infinite or undefined|infinite slope"):
        frame = fperr.measure(
            network(torch.sqrt), inputs(), losses=["ce"], formats=["float64"], **options
        ).frame
    marked = frame[frame["sample"] == 1]
    assert set(marked["reason"]) == {"infinite slope: aten.sqrt.default in head (Of) at 0"}
    assert not marked["is_certified"].any()
    assert set(marked["certainty"].dropna()) <= {"uncertified"}
    others = frame[frame["sample"] != 1]
    assert others["delta"].notna().all()
    assert others["reason"].isna().all()


def test_a_sum_of_weights_that_vanishes_is_no_infinity():
    """Negative control: balls that hold 0 only for want of bits are not called singular."""
    model = network(lambda x: 1 / (x - x + 2.0**-300 * (x + 1)))
    found = exact.gradient(model, inputs(), normal(3, 4).double(), digits=20, engine="ball")
    assert bool(found.to_torch().isfinite().all())


def test_division_by_zero_in_mpmath_is_that_of_ieee_754():
    A = exact.MpArithmetic(64)
    numerator = A.from_torch(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    quotient = A.div(numerator, A.from_torch(torch.tensor([0.0, 0.0, 0.0, 4.0])))
    assert A.to_torch(quotient)[[0, 1, 3]].tolist() == [math.inf, -math.inf, 0.5]
    assert math.isnan(A.to_torch(quotient)[2])
    assert not A.is_finite(quotient)
    assert A.has_zero(numerator)
    logs = A.to_torch(A.log(A.from_torch(torch.tensor([0.0, 1.0, -1.0]))))
    assert logs[:2].tolist() == [-math.inf, 0.0]
    assert math.isnan(logs[2])
    roots = A.to_torch(A.rsqrt(A.from_torch(torch.tensor([0.0, 4.0, -1.0]))))
    assert roots[:2].tolist() == [math.inf, 0.5]
    assert math.isnan(roots[2])
    product = A.matmul(A.from_torch(torch.tensor([[0.0, 1.0]])), quotient[:2].reshape(2, 1))
    assert math.isnan(A.to_torch(product).item())  # 0 times infinity
    assert A.sign(quotient[:2]).tolist() == [1, -1]
