"""Networks whose decisions or magnitudes lie at the edge of what pairs of float64 can tell."""

import re

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from fperr import exact
from fperr.errors import UndecidedError
from fperr.exact import value_numbers
from fperr.exact.double_word import DoubleWordArithmetic
from fperr.exact.double_word.numbers import DoubleWords, euclidean, shortened
from fperr.exact.double_word_network import BatchedNetwork, to_mpmath
from tests.conftest import normal, seeded
from tests.makers.digits import digits_of

WIDE = mpmath.MPContext()
WIDE.prec = 400


class Applied(nn.Module):
    """A function of the input, then a linear layer."""

    def __init__(self, function, features, **layers):
        super().__init__()
        self.function, self.last = function, nn.Linear(features, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.last(self.function(self, x))


def linears():
    return {"a": nn.Linear(6, 5, bias=False), "b": nn.Linear(6, 5, bias=False)}


def doubled(x, times):
    for _ in range(times):
        x = x + x
    return x


def reordered(x):
    """0 but for rounding: the same three terms in two orders."""
    a, b, c = x / 3, x / 7, x / 11
    return ((a + b) + c) - (a + (b + c))


# x, the network, and how many of the two samples pairs of float64 must hand on (None: any)
NETWORKS = {
    "maximum of two layers without biases": (
        lambda m, x: torch.maximum(m.a(x), m.b(x)),
        linears,
        5,
        0,
    ),
    "largest over a dimension of two layers": (
        lambda m, x: torch.stack([m.a(x), m.b(x)], -1).amax(-1),
        linears,
        5,
        0,
    ),
    "relu of a difference of layers": (lambda m, x: torch.relu(m.a(x) - m.b(x)), linears, 5, 0),
    "grouped convolution of equal channels": (
        lambda m, x: m.a(x[:, None, :].expand(-1, 2, -1)).reshape(len(x), 2, 2, 6).amax((1, 3)),
        lambda: {"a": nn.Conv1d(2, 4, 1, groups=2, bias=False)},
        2,
        0,
    ),
    "leaky by hand": (lambda _, x: torch.where(x > 0, x, 0.1 * x), dict, 6, 0),
    "64 doublings": (lambda _, x: torch.relu(doubled(x, 64)) * 2.0**-64, dict, 6, 0),
    "differences within the radius": (lambda _, x: x + torch.relu(reordered(x)), dict, 6, 0),
    "cancelling, 2^40": (lambda _, x: ((x / 3 + 2.0**40) - 2.0**40) ** 2, dict, 6, 2),
    "cancelling, 2^20": (lambda _, x: ((x / 3 + 2.0**20) - 2.0**20) ** 2, dict, 6, None),
    "saturated tanh": (lambda m, x: torch.tanh(m.a(x) * 300), linears, 5, 2),
    "exponential that underflows": (lambda _, x: torch.exp(-900 * x * x), dict, 6, None),
    "SiLU far out": (lambda _, x: nn.functional.silu(x - 800), dict, 6, 2),
    "tiny branch": (lambda m, x: x + m.b(x * 1e-160).mean(1, keepdim=True) * 1e160, linears, 6, 2),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [40, 80])
def test_the_error_claimed_is_not_exceeded(name, bits):
    function, layers, features, handed_on = NETWORKS[name]
    model = seeded(Applied(function, features, **layers())).double()
    x, v = normal(2, 6, seed=3).double(), normal(2, 3, seed=4).double()
    found = exact.gradient(model, x, v, engine="double_word", digits=digits_of(bits))
    balls = exact.gradient(model, x, v, digits=49, engine="ball")
    for mine, truth in zip(found.midpoint, balls.midpoint, strict=True):
        apart, size = (WIDE.sqrt(WIDE.fsum(t**2 for t in a.ravel())) for a in (mine - truth, truth))
        assert apart <= size * WIDE.mpf(2) ** found.log2_error
    if handed_on is not None and bits == 80:
        told = rf", and Arb balls, \d+ bits for {handed_on} of 2 samples" if handed_on else ""
        assert re.fullmatch("pairs of float64, 106 bits" + told, found.engine)


def test_tiny_and_huge_multipliers_go_to_the_balls():
    model = seeded(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))).double()
    x, v = normal(2, 6).double(), normal(2, 3, seed=2).double()
    plain = exact.gradient(model, x, v, engine="double_word", digits=25)
    assert plain.engine == "pairs of float64, 106 bits"
    for exponent in (-1000, -600, -430, 430, 600):
        v_scaled = torch.ldexp(v, torch.tensor(exponent))
        scaled = exact.gradient(model, x, v_scaled, engine="double_word", digits=25)
        assert re.search(r"Arb balls, \d+ bits for 2 of 2 samples$", scaled.engine)
        ratio = scaled.midpoint / WIDE.mpf(2) ** exponent / plain.midpoint - 1
        assert np.abs(ratio).max() < 2.0**-70


def test_a_weight_row_out_of_range_does_not_stop_the_others():
    model = seeded(nn.Linear(8, 3)).double()
    with torch.no_grad():
        model.weight[0] = 1e-130
    x, v = normal(2, 8).double(), normal(2, 3, seed=2).double()
    found = exact.gradient(model, x, v, engine="double_word", digits=25)
    assert (found.to_torch() - v @ model.weight.detach()).abs().max() < 1e-14


def test_constants_left_open_concern_every_sample():
    """relu(exp(2w) - exp(w)^2) is 0 in exact arithmetic, which no radius above 0 proves."""
    weight = torch.linspace(0.1, 1, 6).double()

    def function(_, x):
        return x * (1 + torch.relu(torch.exp(2 * weight) - torch.exp(weight) * torch.exp(weight)))

    model = Applied(function, 6)
    x = normal(2, 6).double()
    capture = exact.capture(seeded(model).double(), x[:1])
    network = BatchedNetwork(capture)
    for _ in range(2):  # in every run, and not in the first alone
        _, undecided = network.gradient(x, torch.ones(2, 3).double())
        assert undecided.all()


def test_interleaved_runs_do_not_influence_each_other():
    """An undecided run stays undecided, and a decided one decided, whatever runs in between.

    relu(exp(2x) - exp(x)^2) is 0 in exact arithmetic: undecided, except at x = 0, where both
    exponentials are known to be 1.
    """

    def function(_, x):
        return x + torch.relu(torch.exp(2 * x) - torch.exp(x) * torch.exp(x))

    x, zero = normal(1, 6).double(), torch.zeros(1, 6).double()
    network = BatchedNetwork(exact.capture(seeded(Applied(function, 6)).double(), x))
    v = network.arithmetic.from_samples(torch.ones(1, 1, 3).double())
    for first, last in ((x, zero), (zero, x)):
        runs = [network.forward(first), network.forward(last)]
        backward = [network.pullback(run.run.saved_values, v)[1] for run in reversed(runs)]
        for run, undecided, point in zip(runs, reversed(backward), (first, last), strict=True):
            assert run.undecided.tolist() == [point is x]
            assert not undecided.any()  # the backward half takes the branches of the forward half
        for point in (first, last, first):
            assert network.gradient(point, torch.ones(1, 3).double())[1].tolist() == [point is x]


def test_equal_value_numbers_of_different_numbers_are_undecided():
    """Where the numbers say that two of them have collided, nothing is decided."""
    A = DoubleWordArithmetic()
    numbers = torch.tensor([[1.0, 2.0]]).double()
    collided = DoubleWords(
        numbers,
        torch.zeros(1, 2).double(),
        torch.zeros(1).double(),
        value_numbers.of_floats(torch.full((1, 2), 7.0).double()),
    )
    with pytest.raises(UndecidedError):
        A.first_argmax(collided, np.ones(2, dtype=bool))


def test_norms_cover_numbers_whose_squares_underflow():
    for size in (1e-170, 1e-200, 5e-324):
        assert euclidean(torch.full((1, 4), size, dtype=torch.float64), 1).item() >= 2 * size
    assert euclidean(torch.zeros(1, 4).double(), 1).item() == 0.0


@pytest.mark.parametrize("bits", [41, 53, 60, 84])
def test_shortened_pairs_keep_that_many_bits(bits):
    A = DoubleWordArithmetic()
    whole = A.exp(A.from_samples(normal(1, 50).double()))
    short = DoubleWords(*shortened(whole.high, whole.low, bits), whole.radius, None)
    ratios = abs(to_mpmath(short, WIDE) / to_mpmath(whole, WIDE) - 1)
    assert ratios.max() <= 2.0 ** (1 - bits)
    assert ratios.min() > 2.0 ** (-bits - 20)  # it does round


def test_a_control_run_differs_by_its_rounding():
    """The disagreement that cancellation causes is seen: both runs would share pairs' rounding."""
    model = Applied(lambda _, x: (x / 3 + 2.0**12) - 2.0**12, 6)
    x = normal(2, 6).double()
    capture = exact.capture(seeded(model).double(), x[:1])
    forward = {}
    for is_control in (False, True):
        network = BatchedNetwork(capture, 60, is_control=is_control)
        logits = network.forward(x).run.logits
        forward[is_control] = logits
    A = DoubleWordArithmetic()
    apart = A.sub(forward[False], forward[True]).norm()
    assert (apart > 2.0**-52).all()
    assert (apart <= forward[False].radius + forward[True].radius).all()
