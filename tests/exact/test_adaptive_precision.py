"""Ball arithmetic against mpmath on nine networks, and what it does where it cannot decide."""

import math
from dataclasses import replace

import flint
import mpmath
import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import data, exact, zoo
from fperr.errors import ContradictedError, ReferenceNotCertifiedError, UndecidedError
from fperr.exact import BallArithmetic, Interpreter, MpArithmetic
from fperr.exact.adaptive_precision import LARGEST_BITS, log2_relative_radius, midpoints, to_balls
from fperr.exact.audit.samples import SampleAudit
from fperr.exact.ball import arithmetic
from fperr.exact.error_bound import decide_order, relative_error
from fperr.exact.operations import OPERATIONS
from tests.conftest import normal, seeded, tiny_mlp
from tests.makers.digits import digits_of
from tests.makers.networks import NETWORKS, SIDE, build

MP_BITS, BALL_BITS = 200, 160
WIDE = mpmath.MPContext()
WIDE.prec = 4 * MP_BITS


def image(seed=1, count=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=generator).to(dtype)


def in_both(model, x):
    """Logits, one product and the Jacobian: as balls, and in mpmath at 200 and 400 bits."""
    capture = exact.capture(model, x)
    v = normal(1, capture.shapes[capture.results[0].name][1], seed=7).double()
    found = []
    for A in (BallArithmetic(BALL_BITS), MpArithmetic(MP_BITS), MpArithmetic(2 * MP_BITS)):
        interpreter = Interpreter(capture, A)
        run = interpreter.forward(x)
        product = interpreter.products(run.saved_values, A.from_torch(v))
        found.append((run.logits, product, interpreter.jacobian(run.saved_values)))
    return found


def meets(balls, numbers, finer):
    """Whether each ball meets the number plus or minus what twice the precision changes."""
    A = BallArithmetic(4 * MP_BITS)
    coarse, fine = to_balls(A, numbers).listed(), to_balls(A, finer).listed()
    shape = balls.index.shape == numbers.shape == finer.shape
    with A.precision():
        return shape and all(
            ours.overlaps(fine_ball.union(coarse_ball))
            for ours, coarse_ball, fine_ball in zip(balls.listed(), coarse, fine, strict=True)
        )


def agree(model, x):
    return [meets(*each) for each in zip(*in_both(model, x), strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_mpmath_lies_in_the_balls(name):
    results = in_both(build(name), image())
    for balls, numbers, finer in zip(*results, strict=True):
        assert meets(balls, numbers, finer)
        # at most 20 operations in a row lose bits, and 60 are more than they can lose here
        assert log2_relative_radius(balls) < -BALL_BITS + 60
        # negative control: a number changed in its 90th bit leaves its ball
        wrong = numbers.copy()
        place = next(i for i, n in np.ndenumerate(numbers) if n)
        wrong[place] = WIDE.mpf(wrong[place]) * (1 + WIDE.mpf(2) ** -90)
        assert not meets(balls, wrong, wrong)


@pytest.mark.parametrize(
    "name", ["mnist_fastat_pgd", pytest.param("mnist_lenet5_advtrained", marks=pytest.mark.slow)]
)
def test_mpmath_lies_in_the_balls_of_trained_networks(fperr_data, name):
    x = data.mnist_test().first(1).x
    assert agree(zoo.load(name), x) == [True] * 3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_jacobian_is_made_of_products(name):
    (_, product, rows), *_ = in_both(build(name), image())
    A = BallArithmetic(BALL_BITS)
    v = A.from_torch(normal(1, 4, seed=7).double())
    combined = A.matmul(v, rows)
    assert all(a.overlaps(b) for a, b in zip(combined.listed(), product.listed(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_differs_by_rounding(name):
    """The networks are up to 14 products deep with at most 100 terms each: 14 * 100 u < 2e-13."""
    model, x = build(name).double(), image(dtype=torch.float64)
    v = normal(1, 4, seed=9).double() / 3
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    ours = exact.gradient(model, x, v, engine="ball").midpoint
    wide = np.array([WIDE.mpf(n) for n in theirs.reshape(-1).tolist()])
    difference = WIDE.norm(list(wide - ours.reshape(-1))) / WIDE.norm(list(ours.reshape(-1)))
    assert 1e-17 < difference < 1e-14


def _wrong_sign(A, gradient, output, dim, dtype):
    del dtype
    product = A.mul(gradient, output)
    return A.add(product, A.mul(output, A.sum(product, [dim % len(A.shape(output))])))


def _wrong_index(A, *arguments):
    values, indices = RIGHT_POOLING(A, *arguments)
    return values, indices + 1 - 2 * (indices % 2)


RIGHT_POOLING = OPERATIONS["aten.max_pool2d_with_indices.default"].meaning


@pytest.mark.parametrize(
    ("name", "operation", "wrong"),
    [
        ("vit_by_hand", "aten._softmax_backward_data.default", _wrong_sign),
        ("lenet", "aten.max_pool2d_with_indices.default", _wrong_index),
    ],
)
def test_a_sabotaged_operation_is_caught(monkeypatch, name, operation, wrong):
    """Both engines share the meaning of operations: PyTorch in float64 is the one to notice."""
    test_float64_differs_by_rounding(name)
    monkeypatch.setitem(OPERATIONS, operation, replace(OPERATIONS[operation], meaning=wrong))
    with pytest.raises(ContradictedError, match=operation):
        test_float64_differs_by_rounding(name)
    # the audit apart, the comparison notices by itself
    passed = SampleAudit("confirmed", 0.0, 0.0)
    monkeypatch.setattr("fperr.exact.adaptive_precision.audit_sample", lambda *_: passed)
    with pytest.raises(AssertionError):
        test_float64_differs_by_rounding(name)


def test_a_sabotaged_engine_is_caught(monkeypatch):
    """What one engine gets wrong by itself shows in the comparison of the two."""
    right = BallArithmetic.take
    monkeypatch.setattr(BallArithmetic, "take", lambda A, a, i: right(A, a, np.roll(i, 1, -1)))
    assert agree(build("lenet"), image()) != [True] * 3
    monkeypatch.undo()
    monkeypatch.setattr(BallArithmetic, "sub", lambda A, a, b: BallArithmetic.add(A, a, b))
    assert agree(build("vit_sdpa"), image()) != [True] * 3
    monkeypatch.undo()
    assert agree(build("vit_sdpa"), image()) == [True] * 3


UNARY = {
    "relu": F.relu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(-1),
    "exp": lambda x: (x / 4).exp(),
    "pool": lambda x: F.max_pool2d(x, 2, 1),
    "mean": lambda x: x - x.mean((1, 2), keepdim=True),
    "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "residual": lambda x: x + torch.sigmoid(x),
    "flip": lambda x: x.flip(-1) * x,
    "square": lambda x: x @ x.mT,
}


class Chain(nn.Module):
    def __init__(self, names, seed):
        super().__init__()
        self.names = names
        self.conv = seeded(nn.Conv2d(1, 2, 2), seed)

    def forward(self, x):
        x = self.conv(x)
        for name in self.names:
            x = UNARY[name](x)
        return x.flatten(1)[:, :3] + x.sum((1, 2, 3))[:, None] / 8


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(UNARY)), min_size=1, max_size=4), st.integers(0, 999))
def test_random_graphs_agree(names, seed):
    chain = Chain(names, seed).eval()
    assert agree(chain, normal(1, 1, 6, 6, seed=seed)) == [True] * 3


def test_a_gradient_is_proved_to_the_bits_that_were_asked_for():
    model, x, v = build("vit_sdpa"), image(count=2), normal(2, 4)
    coarse, fine = (
        exact.gradient(model, x, v, digits=digits_of(bits), engine="ball") for bits in (60, 700)
    )
    assert coarse.midpoint.shape == coarse.radius.shape == tuple(x.shape)
    assert -coarse.log2_error >= 60
    assert -fine.log2_error >= 700
    pairs = zip(coarse.midpoint.flat, coarse.radius.flat, fine.midpoint.flat, strict=True)
    assert all(abs(WIDE.mpf(f) - m) <= r + WIDE.mpf(2) ** -600 for m, r, f in pairs)
    assert "Arb balls" in fine.engine


class Saturating(nn.Module):
    """1 - tanh(s x)^2 cancels: at x = 1 it loses about 2 s log2(e) bits."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.tanh(self.slope * x)


def test_precision_rises_where_bits_are_lost():
    model, x, v = Saturating(14.0).eval(), torch.ones(1, 3), normal(1, 3)
    found = exact.gradient(model, x, v, digits=39, engine="ball")
    assert -found.log2_error >= 128
    easy = exact.gradient(Saturating(0.5).eval(), x, v, digits=39, engine="ball")
    # 2 * 14 * log2(e) = 40.4 bits are lost, more than any start has in reserve
    assert int(found.engine.split()[-2]) >= 128 + 40 > int(easy.engine.split()[-2])


def test_a_limit_says_how_many_bits_are_proved_and_where_they_went():
    model, x, v = Saturating(20.0).eval(), torch.ones(1, 3), normal(1, 3)
    with pytest.raises(ReferenceNotCertifiedError) as refusal:
        exact.gradient(model, x, v, digits=39, largest_digits=46, engine="ball")
    text = str(refusal.value)
    proved = float(text.split(" of 130 bits are proved at 153 bits")[0])
    # of 153, 2 * 20 * log2(e) = 57.7 are lost, and a few roundings
    assert 88 < proved < 96
    assert "tanh_backward loses 5" in text


class NeverDecided(nn.Module):
    """exp(a + b) = exp(a) exp(b): a ReLU of nothing but rounding errors."""

    def forward(self, x):
        a, b = x[:, :1], x[:, 1:]
        zero = torch.relu(torch.exp(a + b) - torch.exp(a) * torch.exp(b))
        return torch.cat([x + zero, zero], 1)


def test_what_cannot_be_decided_is_named_and_not_guessed():
    with pytest.raises(
        ReferenceNotCertifiedError, match=r"relu: 1 decisions, the first at \(0, 0\)"
    ):
        exact.gradient(
            NeverDecided().eval(), normal(1, 2), normal(1, 3), largest_digits=181, engine="ball"
        )


class Smooth(nn.Sequential):
    """A pooling after a smooth activation: no ball in its windows is exact."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
        )


def test_ties_by_construction_go_to_the_first_index(monkeypatch):
    """On a constant background the numbers in a window are equal: PyTorch takes the first."""
    model, x, v = seeded(Smooth()).double(), torch.full((1, 1, 8, 8), 0.3).double(), normal(1, 4)
    x[..., 5:, 5:] = normal(1, 1, 3, 3).double()
    found = exact.gradient(model, x, v, engine="ball").to_torch()
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v.double())
    assert float((found - theirs).norm() / theirs.norm()) < 1e-14
    # negative control: without knowing where numbers come from, nothing decides: neither that they
    # are one entry of the pool nor their value numbers
    everyone = lambda index: (np.arange(len(index)), np.arange(len(index)))  # noqa: E731
    monkeypatch.setattr(arithmetic, "distinct_rows", everyone)
    assert float((exact.gradient(model, x, v, engine="ball").to_torch() - found).norm()) == 0.0
    monkeypatch.setattr(arithmetic, "behind_zero", lambda _: None)
    with pytest.raises(
        ReferenceNotCertifiedError, match=r"max_pool2d_with_indices: .* closer than"
    ):
        exact.gradient(model, x, v, largest_digits=181, engine="ball")


def test_equal_channels_are_equal_by_construction():
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2)))
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[3].weight, model[3].bias):
            parameter[1] = parameter[0]
    capture = exact.capture(model, normal(1, 1, 8, 8))
    run = Interpreter(capture, BallArithmetic(100)).forward(normal(1, 1, 8, 8))
    decide_order(run.logits)
    a, b = run.logits.listed()
    assert a is b
    assert not a.is_exact()
    apart = BallArithmetic(100).array([arb(1, 1), arb(2, 1)], (1, 2))
    with pytest.raises(UndecidedError, match="logits 1 and 0 overlap"):
        decide_order(apart)


def test_an_interval_holds_the_error_and_excludes_what_is_not():
    A, g = BallArithmetic(120), normal(1, 50).double()
    computed = g * (1 + 1e-6 * normal(1, 50, seed=4).double())
    truth = A.div(A.from_torch(g), 3.0)
    low, high = relative_error(A, A.div(A.from_torch(computed), 3.0), truth)
    delta = WIDE.norm([WIDE.mpf(n) for n in (computed - g).flatten().tolist()])
    delta /= WIDE.norm([WIDE.mpf(n) for n in g.flatten().tolist()])
    assert low <= delta * (1 + 1e-15)
    assert delta * (1 - 1e-15) <= high
    assert high - low < 1e-14 * high
    other = relative_error(A, A.from_torch(computed), A.mul(A.from_torch(g), 1 + 1e-7))
    assert not other[0] <= delta <= other[1]
    assert all(map(math.isnan, relative_error(A, truth, A.zeros((1, 50)))))


def test_the_precision_of_flint_is_restored():
    before = flint.ctx.prec
    exact.gradient(tiny_mlp(), normal(1, 6), normal(1, 4), digits=91, engine="ball")
    with pytest.raises(ReferenceNotCertifiedError):
        exact.gradient(
            NeverDecided().eval(), normal(1, 2), normal(1, 3), largest_digits=91, engine="ball"
        )
    assert flint.ctx.prec == before
    assert LARGEST_BITS > 4000
    with pytest.raises(ValueError, match="at least 53"):
        BallArithmetic(52)


def test_numbers_of_mpmath_and_balls_are_the_same():
    A = BallArithmetic(60)
    numbers = np.array([WIDE.mpf(1) / 3, WIDE.mpf(-5), WIDE.zero], dtype=object)
    balls = to_balls(A, numbers)
    assert list(midpoints(balls, WIDE)) == list(numbers)
    assert all(b.is_exact() for b in balls.listed())


class Rescaled(nn.Module):
    """One derived weight in two convolutions that look at it in different ways."""

    def __init__(self, size, stride, transposed=False):
        super().__init__()
        self.weight = nn.Parameter(normal(3, 3, size, size, seed=3).double())
        self.stride, self.apply = stride, F.conv_transpose2d if transposed else F.conv2d

    def forward(self, x):
        weight = self.weight * torch.rsqrt((self.weight * self.weight).sum((0, 1, 2, 3)))
        # smooth, so that the forward half matters, too
        parts = [torch.tanh(self.apply(x, weight, stride=self.stride, padding=p)) for p in (1, 0)]
        return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize(("size", "stride"), [(4, 2), (2, 2), (3, 3), (3, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_may_be_used_with_several_geometries(engine, size, stride, transposed):
    model, x = Rescaled(size, stride, transposed).eval(), normal(1, 3, 6, 6).double()
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    v = normal(*z.shape, seed=8).double()
    (theirs,) = torch.autograd.grad(z, leaf, v)
    digits = 12 if engine == "float64" else 20
    found = exact.gradient(model, x, v, engine=engine, digits=digits).to_torch()
    # sums of at most 48 terms, thrice in a row
    assert float((found - theirs).norm() / theirs.norm()) < 3 * 48 * 2.0**-53


def test_a_weight_may_be_used_with_and_without_groups():
    weight = normal(6, 2, 3, 3, seed=3).double()

    def both(x):
        return F.conv2d(x, weight, groups=3).flatten(1) + F.conv2d(x[:, :2], weight).flatten(1)

    model, x = nn.Sequential(), normal(1, 6, 5, 5).double()
    model.forward = both
    leaf = x.clone().requires_grad_()
    v = normal(1, 54).double()
    (theirs,) = torch.autograd.grad(both(leaf), leaf, v)
    found = exact.gradient(model.eval(), x, v, engine="ball").to_torch()
    assert float((found - theirs).norm() / theirs.norm()) < 1e-14


def test_the_order_of_logits_that_are_equal_as_floats_is_decided():
    """2^-400 decides between the first and the third; the second lies in between, 2^-60 away."""
    model = nn.Linear(3, 4, bias=False).double().eval()
    with torch.no_grad():
        model.weight.zero_()
        rows = [[1, 0, 1], [1, -(2.0**-60), 2], [1, 2.0**-400, 3]]
        model.weight[:3] = torch.tensor(rows, dtype=torch.float64)
        model.weight[3, 0] = -5.0
    x = torch.tensor([[1.0, 1, 0]], dtype=torch.float64)
    frame = fperr.measure(
        model, x, torch.tensor([3]), losses=["cw"], formats=["float64"], certify=True
    ).frame
    # the third is largest: g = (6, 2^-400, 3); the format takes the first: (6, 0, 1)
    assert frame["delta"].item() == pytest.approx(2 / math.sqrt(45), rel=1e-12)
    assert frame["delta_lo"].item() <= frame["delta"].item() <= frame["delta_hi"].item()


def test_equal_numbers_have_equal_values_however_they_were_made():
    A = BallArithmetic(100)
    a, b, c = (torch.tensor([value], dtype=torch.float64) for value in (0.5, 0.25, 0.75))
    made = A.concatenate([A.add(*map(A.from_torch, (a, b))), A.from_torch(c)], 0)
    first, second = A.values(made)
    assert first == second


@pytest.mark.parametrize(
    ("model", "x", "error", "text"),
    [
        (lambda x: x.detach() * 2, (1, 3), "ModelError", "do not depend on the input"),
        (
            lambda x: F.conv_transpose2d(x, torch.ones(1, 1, 1, 1), None, 1, 0, 1, 1, 2).flatten(1),
            (1, 1, 3, 3),
            "UnsupportedOperationError",
            "output padding of a stride or more",
        ),
        (
            lambda x: F.batch_norm(x, torch.zeros(2), torch.ones(2), x.sum((0, 2)), None).flatten(
                1
            ),
            (1, 2, 3),
            "UnsupportedOperationError",
            "weights that depend on the input",
        ),
    ],
)
def test_what_cannot_be_run_exactly_is_refused(model, x, error, text):
    network = nn.Sequential().eval()
    network.forward = model
    with pytest.raises(getattr(fperr.errors, error), match=text):
        exact.gradient(network, normal(*x), torch.ones(1, 1), engine="ball")


def test_arguments_of_an_exact_gradient_are_named():
    model, x, v = tiny_mlp(), normal(1, 6), normal(1, 4)
    with pytest.raises(TypeError, match="x must be a tensor or a NumPy array, got list"):
        exact.gradient(model, x.tolist(), v, engine="ball")
    assert (
        exact.gradient(model, x.numpy(), v, engine="ball").midpoint
        == exact.gradient(model, x, v, engine="ball").midpoint
    ).all()
    with pytest.raises(ValueError, match="v must be finite"):
        exact.gradient(model, x, v * math.nan, engine="ball")
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match="has NaN or infinite entries"):
        exact.gradient(model, x, v, engine="ball")


def test_radii_whose_squares_overflow_have_a_norm():
    A = BallArithmetic(60)
    third = A.div(A.from_torch(torch.tensor([[1e200, -1e200]], dtype=torch.float64)), 3.0)
    radius = max(float(ball.rad()) for ball in third.listed())
    assert radius > 1e155  # 1e310 is beyond float64
    assert radius <= float(A.error_norms(third)) <= 2 * radius
