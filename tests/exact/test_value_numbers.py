"""Value numbers against integers and fractions, and the decisions that they settle."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fperr import data, exact
from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact import BallArithmetic, Interpreter, value_numbers
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.exact.error_bound import decide_order
from fperr.exact.stacked import StackedArithmetic
from fperr.exact.value_numbers import LONGEST_SUM, PRIMES, _drawn_primes
from tests.conftest import normal, seeded
from tests.makers.digits import digits_of

BITS = 64
NUMBERED = ("ball", "double_word")  # the engines that have value numbers


def residues_of(numbers):
    """(len(PRIMES), count): those of fractions, by Python's integers."""
    return [[n.numerator * pow(n.denominator, -1, p) % p for n in numbers] for p in PRIMES]


def holds(numbers, fractions):
    """Whether the value numbers are those of the fractions, and centred."""
    mine = [[int(r) for r in residue.flatten().tolist()] for residue in numbers.residues]
    centred = all(abs(r) <= p // 2 for p, row in zip(PRIMES, mine, strict=True) for r in row)
    rows = [[r % p for r in row] for p, row in zip(PRIMES, mine, strict=True)]
    return centred and rows == residues_of(list(fractions))


def fractions_of(tensor):
    return np.array([Fraction(n) for n in tensor.flatten().tolist()], dtype=object).reshape(
        tuple(tensor.shape)
    )


def wide(*shape, seed=2):
    """Floats of many magnitudes."""
    return normal(*shape, seed=seed).double() * torch.exp(
        9 * normal(*shape, seed=seed + 50).double()
    )


def test_the_primes_are_drawn_for_each_process():
    def is_prime(n):
        return all(n % d for d in range(2, math.isqrt(n) + 1))

    drawn = [_drawn_primes() for _ in range(20)]
    assert all(2**19 < p < 2**20 and is_prime(p) for pair in (PRIMES, *drawn) for p in pair)
    # of 38,635 primes, 40 are almost never fewer than 30 different ones
    assert len({p for pair in drawn for p in pair}) >= 30
    # sums of products stay where reduction is exact
    assert LONGEST_SUM * (PRIMES[0] // 2) ** 2 < 2**51


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@settings(max_examples=80, deadline=None)
def test_floats_have_the_residues_of_their_values(numbers):
    tensor = torch.tensor(numbers, dtype=torch.float64)
    found = value_numbers.of_floats(tensor)
    assert holds(found, map(Fraction, numbers))
    pairs = [(n.as_integer_ratio()[0], 1 - n.as_integer_ratio()[1].bit_length()) for n in numbers]
    assert found.equals(value_numbers.of_dyadics(pairs)).all()


@pytest.mark.parametrize("place", [0, 1])
def test_reduction_is_exact_up_to_its_limit(place):
    p = PRIMES[place]
    multiples = [k * p for k in (0, 1, -1, 2**30, -(2**30) - 1, 2**51 // p - 1, -(2**51 // p) + 1)]
    numbers = [m + d for m in multiples for d in (-(p // 2), 1 - p // 2, -1, 0, 1, p // 2)]
    assert max(map(abs, numbers)) < 2**51
    found = value_numbers._reduced(torch.tensor(numbers, dtype=torch.float64), p)
    assert [int(r) for r in found] == [value_numbers._centred(n, p) for n in numbers]


def numbers_of(a):
    """The value numbers of an array of one sample, entry by entry."""
    if isinstance(a, DoubleWords):
        return a.value_number.moved(lambda t: t[0])
    return a.numbers_at(a.index)


ARITHMETICS = {"ball": BallArithmetic(200), "double_word": DoubleWordArithmetic()}


@pytest.mark.parametrize("A", ARITHMETICS.values(), ids=ARITHMETICS)
def test_arithmetic_commutes_with_residues(A):
    x, y = wide(4, 6), wide(4, 6, seed=3)
    x[0, :2], y[0, 1:3] = 0.0, 2.0
    p, q = fractions_of(x), fractions_of(y)
    a, b = A.from_torch(x), A.from_torch(y)
    row = A.from_torch(y[:1])
    for found, true in (
        (A.add(a, b), p + q),
        (A.sub(a, b), p - q),
        (A.sub(a, row), p - q[:1]),
        (A.mul(a, b), p * q),
        (A.mul(a, -1.0), -p),
        (A.mul(a, 0.25), p / 4),
        (A.mul(a, 3.3), p * Fraction(3.3)),
        (A.div(a, b), p / q),
        (A.div(a, 3.0), p / 3),
        (A.matmul(a, A.permute(b, (1, 0))), p @ q.T),
        (A.sum(a, (1,)), p.sum(1)),
        (A.sum(a, (0, 1)), np.array([p.sum()])),
        (A.div(A.sum(a, (0,)), 4.0), p.sum(0) / 4),
        (A.concatenate([a, b], 1), np.concatenate([p, q], 1)),
        (A.take(a, np.array([3, -1, 0])), np.array([p[0, 3], Fraction(0), p[0, 0]])),
        (A.where((x > 0).numpy(), a, b), np.where((x > 0).numpy(), p, q)),
        (A.zeros((2, 2)), np.array([Fraction(0)] * 4)),
    ):
        assert holds(numbers_of(found), true.reshape(-1))
    # negative control: one number more by its last bit
    other = x.clone()
    other[2, 3] = torch.nextafter(other[2, 3], torch.tensor(math.inf, dtype=torch.float64))
    assert not holds(
        numbers_of(A.matmul(a, A.permute(b, (1, 0)))), (fractions_of(other) @ q.T).flat
    )


@pytest.mark.parametrize("A", ARITHMETICS.values(), ids=ARITHMETICS)
def test_sums_at_places_commute_with_residues(A):
    x, places = wide(3, 4), np.array([[0, 1, 1, -1], [1, 4, 4, 4], [0, 0, -1, 2]])
    true = [Fraction(0)] * 6
    for number, place in zip(fractions_of(x).flat, places.flat, strict=True):
        if place >= 0:
            true[place] += number
    assert holds(numbers_of(A.scatter_add(A.from_torch(x), places, (2, 3))), true)


def correlation(x, weight, stride, padding, dilation, groups):
    """Of one sample (channels, h, w), in fractions, and the matrix that it is."""
    channels, h, w = x
    out, width, kh, kw = weight.shape
    rows = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (w + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    matrix = np.full((out * rows * columns, channels * h * w), Fraction(0))
    for o, r, c, i, u, v in np.ndindex(out, rows, columns, width, kh, kw):
        channel = o // (out // groups) * width + i
        y, z = r * stride - padding + u * dilation, c * stride - padding + v * dilation
        if 0 <= y < h and 0 <= z < w:
            matrix[(o * rows + r) * columns + c, (channel * h + y) * w + z] = weight[o, i, u, v]
    return matrix, (out, rows, columns)


@pytest.mark.parametrize("engine", NUMBERED)
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (2, 1, 1, 2), (3, 0, 1, 4)],
)
def test_convolutions_and_their_transposes_commute_with_residues(
    engine, stride, padding, dilation, groups
):
    """What the operations make of a network is what a matrix of fractions makes of its numbers."""
    x, weight = wide(1, 4, 7, 6), wide(8, 4 // groups, 3, 2, seed=4)
    matrix, shape = correlation(
        x.shape[1:], fractions_of(weight), stride, padding, dilation, groups
    )
    settings_ = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    forward = _forward(engine, lambda t: F.conv2d(t, weight, **settings_), x)
    assert holds(numbers_of(forward), matrix @ fractions_of(x).reshape(-1))
    y = wide(1, *shape, seed=5)
    with torch.no_grad():
        back = F.conv_transpose2d(y, weight, **settings_).shape
    narrow = tuple(back[2:])
    matrix, again = correlation(
        (4, *narrow), fractions_of(weight), stride, padding, dilation, groups
    )
    assert again == shape
    spread = _forward(engine, lambda t: F.conv_transpose2d(t, weight, **settings_), y)
    assert holds(numbers_of(spread), matrix.T @ fractions_of(y).reshape(-1))


def _forward(engine, function, x):
    """The flattened result of a function at x."""
    model = nn.Sequential()
    model.forward = lambda t: function(t).flatten(1)
    interpreter = Interpreter(exact.capture(model.eval(), x), ARITHMETICS[engine])
    return interpreter.forward(x).logits


@pytest.mark.parametrize("terms", [LONGEST_SUM, LONGEST_SUM + 1, 3 * 2**14])
def test_long_sums_do_not_overflow(terms):
    """Residues of the largest size, all of one sign."""
    largest = torch.full((2, terms), float(PRIMES[-1] // 2), dtype=torch.float64)
    a = value_numbers.of_floats(largest)
    right = a.moved(lambda t: t.T.contiguous())
    found = value_numbers.product(a, value_numbers.factor(right, terms), torch.matmul)
    assert holds(found, [Fraction(terms * (PRIMES[-1] // 2) ** 2)] * 4)
    pieces = value_numbers.factor(right, terms).pieces[0]
    assert sum(float(piece.abs().max()) for piece in pieces[:1]) * terms * 2**19 <= 2**51


def test_no_large_power_of_two_is_zero():
    number = value_numbers.of_floats(torch.tensor([1.0, 3.0], dtype=torch.float64))
    for _ in range(200):
        number = value_numbers.total(number, number)
    assert holds(number, [Fraction(2**200), Fraction(3 * 2**200)])


def test_functions_are_hashed_and_their_exact_relations_hold():
    x = torch.tensor([0.0, 1.0, 0.5, -0.5, 2.0], dtype=torch.float64)
    a = value_numbers.of_floats(x)
    seen = {}
    for name in ("exp", "log", "rsqrt", "tanh", "erf", "sin", "cos", "atan"):
        found = value_numbers.of_function(name, a)
        seen[name] = found.identifiers().tolist()
        negated = value_numbers.of_function(name, value_numbers.negative(a))
        is_odd = bool(value_numbers.total(found, negated).equals_float(0.0).all())
        assert is_odd == (name in ("tanh", "erf", "sin", "atan"))
    one, zero = (value_numbers.of_float(n).identifiers().item() for n in (1.0, 0.0))
    assert (seen["exp"][0], seen["log"][1], seen["rsqrt"][1]) == (one, zero, one)
    assert seen["tanh"][0] == seen["erf"][0] == seen["sin"][0] == seen["atan"][0] == zero
    assert seen["cos"][0] == one
    everything = [n for numbers in seen.values() for n in numbers]
    assert len(set(everything)) == len(everything) - 6  # three ones, five zeros


def test_quotients_by_zero_and_infinities_equal_nothing():
    x = torch.tensor([1.0, math.inf, math.nan, 0.0], dtype=torch.float64)
    a = value_numbers.of_floats(x)
    for number, undefined in (
        (a, [False, True, True, False]),
        (value_numbers.inverse(a), [False, True, True, True]),
        (value_numbers.total(a, a, -1), [False, True, True, False]),
        (value_numbers.of_function("exp", a), [False, True, True, False]),
        (value_numbers.of_function("tanh", a), [False, True, True, False]),
    ):
        assert (~number.equals(number)).tolist() == undefined
        identifiers = number.identifiers().tolist()
        assert [i < 0 for i in identifiers] == undefined
    assert len(set(value_numbers.inverse(a).identifiers().tolist())) == 4


@pytest.mark.parametrize("place", [0, 1])
def test_what_one_prime_divides_has_an_inverse_of_its_own(place):
    p = PRIMES[place]
    a = value_numbers.of_floats(torch.tensor([float(p), 3.0 * p, 1.0], dtype=torch.float64))
    found = value_numbers.inverse(a)
    assert found.equals(found).all()
    assert len(set(found.identifiers().tolist())) == 3
    again = value_numbers.times(a, found)
    assert again.equals_float(1.0).tolist() == [False, False, True]


class ZeroSums(nn.Module):
    """Filters that sum to zero, on a normalised constant background, and a kink."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.last = nn.Linear(weight.shape[0] * 36, 3)

    def forward(self, x):
        y = F.conv2d((x - 0.1307) / 0.3081, self.weight)
        return self.last(torch.relu(y).flatten(1))


def zero_sums(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-50, 51, (4, 2, 3, 3), generator=generator).double()
    weight[:, -1, -1, -1] -= weight.sum((1, 2, 3))
    model = seeded(ZeroSums(weight.clone()), seed).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


def background(count, seed):
    """Constant but for a patch of random numbers, another one in each sample."""
    x = torch.full((count, 2, 8, 8), 0.3, dtype=torch.float64)
    x[:, :, 4:, 4:] = normal(count, 2, 4, 4, seed=seed).double()
    return x


@pytest.mark.parametrize("engine", NUMBERED)
@pytest.mark.parametrize("seed", range(3))
def test_filters_that_sum_to_zero_vanish_on_a_constant_patch(engine, seed):
    model = zero_sums(seed)
    x, v = background(3, seed), normal(3, 3).double()
    found = exact.gradient(model, x, v, engine=engine, digits=digits_of(BITS))
    assert "balls" not in found.engine or engine == "ball"
    leaf = x.clone().requires_grad_()
    y = F.conv2d((leaf - 0.1307) / 0.3081, model.weight)
    # the branch at 0 is PyTorch's: what rounding leaves there is not above 0
    is_active = (y.detach() > 1e-9).double()
    (wanted,) = torch.autograd.grad(model.last((y * is_active).flatten(1)), leaf, v)
    assert 0 < float(is_active.mean()) < 0.7
    assert float((found.to_torch() - wanted).norm() / wanted.norm()) < 1e-12
    # negative control: a filter that does not quite sum to zero is not taken for one that does
    with torch.no_grad():
        model.weight[0, 0, 0, 0] += 2.0**-40
    changed = exact.gradient(model, x, v, engine=engine, digits=digits_of(BITS)).to_torch()
    assert float((changed - found.to_torch()).norm()) > 1e-6


class ConstantRows(nn.Module):
    """Layer norm of rows some of which are constant, a division before and a kink behind."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(7), nn.Linear(21, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(x / 3)).flatten(1))


@pytest.mark.parametrize("engine", NUMBERED)
def test_layer_norm_of_constant_rows_is_zero(engine):
    model = ConstantRows().double().eval()  # without a shift: the kink is at 0
    x, v = normal(2, 3, 7).double(), normal(2, 3).double()
    x[:, 1] = 0.7
    leaf = x.clone().requires_grad_()
    normalised = model.norm(leaf / 3)
    is_active = (normalised.detach() > 1e-9).double()
    (wanted,) = torch.autograd.grad(model.last((normalised * is_active).flatten(1)), leaf, v)
    found = exact.gradient(model, x, v, engine=engine, digits=digits_of(BITS))
    assert "balls" not in found.engine or engine == "ball"
    assert not found.to_torch()[:, 1].any()
    assert float((found.to_torch() - wanted).norm() / wanted.norm()) < 1e-12


def reordered(x):
    """0 by arithmetic: the same three terms in two orders."""
    a, b, c = x / 3, x / 7, x / 11
    return ((a + b) + c) - (a + (b + c))


@pytest.mark.parametrize("engine", NUMBERED)
def test_the_order_of_sums_does_not_matter(engine):
    model, x, v = nn.Sequential().eval(), normal(2, 6).double(), normal(2, 6, seed=5).double()
    model.forward = lambda t: t + torch.relu(reordered(t))
    found = exact.gradient(model, x, v, engine=engine, digits=digits_of(BITS))
    assert "balls" not in found.engine or engine == "ball"
    assert torch.equal(found.to_torch(), v)


def test_without_value_numbers_nothing_decides(monkeypatch):
    model = zero_sums(0)
    x, v = background(1, 0), normal(1, 3).double()
    monkeypatch.setattr(value_numbers, "total", lambda *_: None)
    for engine in NUMBERED:
        with pytest.raises(ReferenceNotCertifiedError, match="closer than"):
            exact.gradient(model, x, v, engine=engine, digits=digits_of(BITS), largest_digits=91)


def test_a_collision_of_balls_apart_is_noticed():
    A = BallArithmetic(100)
    numbers = A.from_torch(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    thirds = A.div(numbers, 3.0)
    alike = value_numbers.of_floats(torch.tensor([0.0, 7.0, 7.0, 5.0], dtype=torch.float64))
    collided = thirds.renumbered(alike)
    every = np.ones((1, 3), dtype=bool)
    assert A.first_argmax(thirds, every).tolist() == [2]
    assert A.exceeds(thirds, 0.5).tolist() == [[False, True, True]]
    decide_order(thirds)
    part = A.take(collided, np.array([[0, 1]]))
    for decide in (
        lambda: A.first_argmax(part, every[:, :2]),
        lambda: A.same(A.take(part, np.array([0])), A.take(part, np.array([1]))),
        lambda: A.exceeds(collided, 7.0),
        lambda: A.exceeds(collided, 5.0),
        lambda: decide_order(part),
    ):
        with pytest.raises(UndecidedError):
            decide()
    assert A.exceeds(collided, 6.0).tolist() == [[False] * 3]


def test_balls_that_overlap_are_decided_by_value_numbers_alone():
    A = BallArithmetic(100)
    wide_balls = [arb(1, 0.5), arb(1, 0.25), arb(0.5, 0.125)]
    plain = A.array(wide_balls, (1, 3))
    every = np.ones((1, 3), dtype=bool)
    with pytest.raises(UndecidedError):
        A.first_argmax(plain, every)
    alike = value_numbers.of_floats(torch.tensor([0.0, 7.0, 7.0, 7.0], dtype=torch.float64))
    other = value_numbers.of_floats(torch.tensor([0.0, 7.0, 8.0, 8.0], dtype=torch.float64))
    first_two = A.take(plain.renumbered(alike), np.array([[0, 1]]))
    assert A.first_argmax(first_two, every[:, :2]).tolist() == [0]
    with pytest.raises(UndecidedError):
        A.first_argmax(A.take(plain.renumbered(other), np.array([[0, 1]])), every[:, :2])
    assert len(set(A.values(plain).flat)) == 3
    assert len(set(A.values(first_two).flat)) == 1


def test_the_first_of_a_tie_is_taken_though_a_later_one_is_known_better():
    """The first ball of the tie is too wide to beat the third, which the second one beats."""
    A = BallArithmetic(100)
    balls = A.array([arb(1), arb(2, 1.5), arb(2, 0.25)], (1, 3))
    numbers = value_numbers.of_floats(torch.tensor([0.0, 1.0, 9.0, 9.0], dtype=torch.float64))
    every = np.ones((1, 3), dtype=bool)
    assert A.first_argmax(balls.renumbered(numbers), every).tolist() == [1]


def test_exact_balls_have_the_value_numbers_of_their_digits():
    A = BallArithmetic(100)
    x = torch.tensor([0.0, 4.0, 0.25, 2.0], dtype=torch.float64)
    found = A.rsqrt(A.from_torch(x[1:]))
    exactly = [ball.is_exact() for ball in found.listed()]
    numbers = numbers_of(found).identifiers().tolist()
    for ball, number, is_exact in zip(found.listed(), numbers, exactly, strict=True):
        if is_exact:
            assert number == value_numbers.of_float(float(ball)).identifiers().item()
    zero = A.exp(A.from_torch(x[:1]))
    assert A.same(zero, A.from_torch(torch.ones(1).double())).all()


def test_the_backward_half_has_no_value_numbers():
    model = zero_sums(0)
    x = background(1, 0)
    capture = exact.capture(model, x)
    interpreter = Interpreter(capture, BallArithmetic(120))
    run = interpreter.forward(x)
    v = interpreter.arithmetic.from_torch(normal(1, 3).double()).renumbered(None)
    seen = []
    interpreter.products(run.saved_values, v, lambda _, value: seen.append(value))
    arrays = [value for value in seen if isinstance(value, BallArray)]
    assert arrays
    assert all(value.value_number is None for value in arrays)


def test_columns_keep_the_value_numbers_of_what_they_lift():
    """Decisions of the backward half are made on numbers of the forward half."""
    A = BallArithmetic(120)
    third = A.div(A.from_torch(torch.tensor([1.0, 2.0], dtype=torch.float64)), 3.0)
    twice = A.add(A.div(A.from_torch(torch.tensor([1.0, 1.0], dtype=torch.float64)), 3.0), 0.0)
    columns = StackedArithmetic(A)
    difference = columns.sub(columns.lifted(third), columns.lifted(twice))
    assert columns.exceeds(difference, 0.0).tolist() == [False, True]
    assert columns.sign(difference).tolist() == [0, 1]


@pytest.mark.parametrize("kink", [nn.ReLU, nn.Identity])
def test_a_normalised_network_on_real_digits_is_proved_by_balls(fperr_data, kink):
    body = seeded(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 5), kink(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 6, 5), kink(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(96, 10)),
        )
    )
    model = nn.Sequential(body)
    model.forward = lambda x: body((x - 0.1307) / 0.3081)
    x, v = data.mnist_test().x[:2], normal(2, 10).double()
    balls = exact.gradient(model.eval(), x, v, engine="ball")
    assert int(balls.engine.split()[-2]) < 256  # not raised
    words = exact.gradient(model, x, v, engine="double_word")
    assert words.engine == "pairs of float64, 106 bits"
    assert bool((abs(balls.midpoint - words.midpoint) <= balls.radius + words.radius).all())
