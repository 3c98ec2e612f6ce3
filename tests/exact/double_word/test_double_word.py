"""Pairs of float64 against balls: networks, bounds, slices, decisions, guards."""

import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import data, exact, zoo
from fperr.errors import InexactProductError, UndecidedError
from fperr.exact import value_numbers
from fperr.exact.double_word import DoubleWordArithmetic, device_checks, ozaki_product, ozaki_slices
from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.double_word.operator_norms import convolution_norm, spectral_norm
from fperr.exact.double_word_network import BatchedNetwork, log2_relative_errors, to_mpmath
from fperr.exact.engines.vectors import DoubleWordVectors, MpVectors
from fperr.exact.mp import MpArithmetic
from tests.conftest import normal, seeded, slow_except
from tests.makers.digits import digits_of
from tests.makers.networks import KINDS, NETWORKS, SIDE, build

WIDE = mpmath.MPContext()
WIDE.prec = 400
BALL_BITS = 160


def images(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=generator)


def captured(name, x):
    capture = exact.capture(build(name), x[:1])
    return capture, capture.shapes[capture.results[0].name][1]


def distance(a, b):
    """The Euclidean norm of a - b, for arrays of mpf."""
    return WIDE.sqrt(WIDE.fsum((p - q) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)))


def norm(a):
    return distance(a, np.zeros(a.shape, dtype=object) * WIDE.zero)


def meets(found, sample, enclosure):
    """Whether the sample's numbers are within both radii of the enclosure; and their distance."""
    mine = to_mpmath(found.of(sample), WIDE)
    apart = distance(mine, enclosure.midpoint)
    return apart <= found.radius[sample].item() + norm(enclosure.radius), apart


def run_and_jacobian(network, x, classes):
    """Logits (samples, K) and the K rows of every Jacobian, as words."""
    forward = network.forward(x)
    undecided = forward.undecided
    A = network.arithmetic
    rows = []
    for k in range(classes):
        v = torch.zeros(len(x), 1, classes)
        v[:, 0, k] = 1
        row, undecided_backward = network.pullback(forward.run.saved_values, A.from_samples(v))
        rows.append(row)
        undecided = undecided | undecided_backward
    assert not undecided.any()
    return forward.run.logits, rows


@pytest.mark.parametrize("name", slow_except(NETWORKS, KINDS))
def test_words_meet_the_balls(name):
    x = images(2)
    capture, classes = captured(name, x)
    v = normal(2, classes, seed=7).double()
    balls = exact.gradient(build(name), x, v, digits=digits_of(BALL_BITS), engine="ball")
    certifier = exact.adaptive_precision.AdaptivePrecision(capture, BALL_BITS)
    for bits, digits in ((106, 25), (63, 14)):
        network = BatchedNetwork(capture, bits)
        product, undecided = network.gradient(x, v)
        assert not undecided.any()
        logits, rows = run_and_jacobian(network, x, classes)
        for i in range(2):
            mine, whole = to_mpmath(product.of(i), WIDE), balls.midpoint[i]
            apart = distance(mine, whole)
            assert apart <= product.radius[i].item() + norm(balls.radius[i])
            assert apart <= norm(whole) * WIDE.mpf(10) ** -digits
            for found, make in _parts(logits, rows):
                enclosed = certifier_result(certifier, x[i : i + 1], make)
                assert meets(found, i, enclosed)[0]


def _parts(logits, rows):
    yield logits, None
    for k, row in enumerate(rows):
        yield row, k


def certifier_result(certifier, x, k):
    """The logits, or row k of the Jacobian, proved by balls."""
    if k is not None:
        classes = certifier.capture.shapes[certifier.capture.results[0].name][1]
        v = torch.zeros(1, classes)
        v[0, k] = 1
        return certifier.product(x, v)
    balls, bits = certifier.raised(
        lambda interpreter: interpreter.forward(x).logits,
        lambda found: -exact.adaptive_precision.log2_relative_radius(found),
        str,
    )
    return exact.adaptive_precision.enclosure(balls, bits)


def enclosed_by_balls(name, bits):
    """Whether the product of two samples lies within both radii, as the networks' test asks."""
    x = images(2)
    capture, classes = captured(name, x)
    v = normal(2, classes, seed=7).double()
    balls = exact.gradient(build(name), x, v, digits=digits_of(BALL_BITS), engine="ball")
    product, _ = BatchedNetwork(capture, bits).gradient(x, v)
    return all(
        distance(to_mpmath(product.of(i), WIDE), balls.midpoint[i])
        <= product.radius[i].item() + norm(balls.radius[i])
        for i in range(2)
    )


SABOTAGE = {
    "a dropped slice": lambda parts: parts[:2],
    "a wrong exponent": lambda parts: [
        part * 2 if i == 2 else part for i, part in enumerate(parts)
    ],
}


@pytest.mark.parametrize("change", SABOTAGE.values(), ids=SABOTAGE)
@pytest.mark.parametrize("name", ["lenet", "resnet", "vgg_bn"])
def test_sabotaged_slices_are_caught(name, change, monkeypatch):
    assert enclosed_by_balls(name, 106)
    add_up = ozaki_product._summed
    monkeypatch.setattr(ozaki_product, "_summed", lambda parts, *rest: add_up(change(parts), *rest))
    assert not enclosed_by_balls(name, 106)


def test_a_batch_gives_the_bits_of_its_samples():
    x = images(5)
    capture, classes = captured("resnet", x)
    v = normal(5, classes, seed=3).double()
    together, _ = BatchedNetwork(capture).gradient(x, v)
    pieces = BatchedNetwork(capture, memory=1)
    assert pieces.at_once == 1
    alone, _ = pieces.gradient(x, v)
    assert torch.equal(together.high, alone.high)
    assert torch.equal(together.low, alone.low)


def test_real_networks_to_25_digits(fperr_data):
    x = data.mnist_test().first(3).x
    for name in ("mnist_lenet5_advtrained", "mnist_fastat_pgd"):
        model = zoo.load(name)
        v = normal(3, 10, seed=1).double()
        found = exact.gradient(model, x, v, engine="double_word", digits=22)
        balls = exact.gradient(model, x, v, digits=39, engine="ball")
        assert found.radius is not None
        assert found.engine == "pairs of float64, 106 bits"
        assert distance(found.midpoint, balls.midpoint) <= norm(balls.midpoint) * 1e-25
        radii = found.radius + balls.radius
        assert bool((abs(found.midpoint - balls.midpoint) <= radii).all())


@given(st.integers(1, 400), st.integers(2, 60), st.sampled_from([40, 63, 84, 106]))
@settings(max_examples=60, deadline=None)
def test_plans_keep_sums_exact(terms, right_bits, bits):
    chosen = ozaki_slices.plan(terms, right_bits, bits)
    largest = [2 ** (w - 1) + 2 ** (w - 5) + 2 for w in (chosen.left_width, chosen.right_width)]
    assert terms * largest[0] * largest[1] <= 2**53 - 2
    assert chosen.left_count * chosen.left_width >= bits + 1
    assert chosen.right_count * chosen.right_width >= right_bits


@pytest.mark.parametrize("width", [5, 17, 24, 25, 26, 28, 33, 48])
def test_slices_are_small_integers_and_leave_out_what_they_say(width):
    high = normal(3, 50).double() * torch.exp(4 * normal(3, 50, seed=2).double())
    high, low = ozaki_slices.fast_two_sum(high, high * normal(3, 50, seed=3).double() * 2.0**-56)
    top = ozaki_slices.top_exponents(high, (1,))
    for count in (2, -(-107 // width)):
        parts = ozaki_slices.cut(high, low, top, width, count)
        for i, part in enumerate(parts):
            units = part / ozaki_slices.power_of_two(top + 1 - (i + 1) * width)
            assert torch.equal(units, units.round())
            assert units.abs().max() <= 2 ** (width - 1) + 2 ** (width - 5) + 2
        bound = ozaki_slices.left_out(top, width, count)
        for row, column in np.ndindex(3, 50):
            exact_value = Fraction(high[row, column].item()) + Fraction(low[row, column].item())
            rest = exact_value - sum(Fraction(part[row, column].item()) for part in parts)
            assert abs(rest) <= Fraction(bound[row, 0].item())


def test_norms_are_bounds_and_not_far_off():
    weight = normal(6, 4, 3, 3).double()
    for stride, dilation, size in ((1, 1, 9), (2, 1, 9), (1, 2, 11), (2, 2, 11)):

        def apply(x, s=stride, d=dilation):
            return F.conv2d(x, weight, stride=s, padding=1, dilation=d)

        columns = torch.eye(4 * size * size).double().reshape(-1, 4, size, size)
        true = torch.linalg.matrix_norm(apply(columns).flatten(1), 2)
        bound = convolution_norm(weight, [stride] * 2, [dilation] * 2, 1, tight=True)
        assert true <= bound <= 3 * true
    matrix = normal(30, 50).double()
    true = torch.linalg.matrix_norm(matrix, 2)
    assert true <= spectral_norm(matrix) <= 1.2 * true


A = DoubleWordArithmetic()


UNARY = ("exp", "log", "rsqrt", "tanh", "erf", "sin", "cos", "atan")


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", *UNARY])
@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_operations_stay_within_their_radius(name, seed):
    a, b = (_words(seed + i, positive=name in ("log", "rsqrt", "div")) for i in range(2))
    unary = name in UNARY
    found = getattr(A, name)(a) if unary else getattr(A, name)(a, b)
    true = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "exp": lambda x, _: WIDE.exp(x),
        "log": lambda x, _: WIDE.log(x),
        "rsqrt": lambda x, _: 1 / WIDE.sqrt(x),
        "tanh": lambda x, _: WIDE.tanh(x),
        "erf": lambda x, _: WIDE.erf(x),
        "sin": lambda x, _: WIDE.sin(x),
        "cos": lambda x, _: WIDE.cos(x),
        "atan": lambda x, _: WIDE.atan(x),
    }[name]
    # the numbers themselves, and the farthest that their radii allow in one direction
    for push in (0.0, 1.0):
        numbers = [_pushed(w, push) for w in (a, b)]
        exact_values = np.frompyfunc(true, 2, 1)(*numbers)
        apart = distance(to_mpmath(found, WIDE), exact_values)
        assert apart <= found.radius.item()
        if push == 0.0:
            assert apart <= norm(exact_values) * 2.0**-100


def _words(seed, *, positive):
    high = normal(1, 20, seed=seed % 2**31).double()
    high = high.abs() + 0.5 if positive else high
    high, low = ozaki_slices.fast_two_sum(high, high * 2.0**-55)
    return DoubleWords(high, low, torch.tensor([1e-25]).double(), None)


def _pushed(a, push):
    numbers = to_mpmath(a, WIDE)
    return numbers + push * WIDE.mpf(1e-25) / WIDE.sqrt(numbers.size)


def test_products_stay_within_their_radius():
    a, b = (torch.pi * normal(*shape).double() for shape in ((4, 30), (30, 6)))
    for bits in (40, 63, 106):
        B = DoubleWordArithmetic(bits)
        for left in (a, a * torch.logspace(-9, 9, 30).double()):
            found = B.matmul(B.from_torch(left), B.from_torch(b))
            exact_product = np.array(
                [
                    [
                        WIDE.fdot(map(WIDE.mpf, row), map(WIDE.mpf, column))
                        for column in b.T.tolist()
                    ]
                    for row in left.tolist()
                ],
                dtype=object,
            )
            apart = distance(to_mpmath(found, WIDE), exact_product)
            assert apart <= found.radius.item()
            assert apart >= found.radius.item() * 2.0**-20  # the radius is not far off


def test_numbers_out_of_range_have_no_bound():
    huge = A.from_torch(torch.tensor([[1e200, 1.0]], dtype=torch.float64))
    assert A.matmul(huge, A.from_torch(torch.ones(2, 2))).radius.isinf().all()
    assert A.mul(huge, huge).radius.isinf().all()


def test_decisions_within_the_radius_are_undecided():
    close = DoubleWords(
        torch.tensor([[1.0, 1e-30], [1.0, 1e-20]]).double(),
        torch.zeros(2, 2).double(),
        torch.tensor([1e-25, 1e-25]).double(),
        value_numbers.of_floats(torch.ones(2, 2).double()),
    )
    reported = []
    A.reporting(reported.append).exceeds(close, 0.0)
    assert [samples.tolist() for samples in reported] == [[True, False]]
    with pytest.raises(UndecidedError, match="1 decisions are closer than pairs of float64"):
        A.exceeds(close, 0.0)  # nobody would hear of it


def test_an_arithmetic_that_reports_shares_the_prepared_constants():
    base, made = DoubleWordArithmetic(), []
    constant = base.from_torch(torch.ones(2, 2))
    for B in (base.reporting(made.append), base, base.reporting(made.append)):
        B.prepared((constant,), "layout", lambda: made.append("prepared"))
    assert made == ["prepared"]


def test_equal_by_construction_is_decided():
    """A constant background gives equal entries in every pooling window: the first one wins."""
    model = seeded(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )
    )
    x = torch.full((2, 1, 8, 8), 0.3)
    x[1, 0, 2:5, 3:6] = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    v = normal(2, 3).double()
    found = exact.gradient(model, x, v, engine="double_word", digits=25)
    assert found.engine == "pairs of float64, 106 bits"
    assert found.radius is not None
    balls = exact.gradient(model, x, v, digits=39, engine="ball")
    assert bool((abs(found.midpoint - balls.midpoint) <= found.radius + balls.radius).all())


def test_a_close_decision_goes_to_the_balls():
    class Edge(nn.Module):
        """A ReLU whose argument is 1e-36 at the first sample and far from 0 at the second."""

        def forward(self, x):
            small = x[:, :1] * 1e-36 + (x[:, 1:2] - 0.5) * (x[:, 1:2] - 0.25)
            return torch.cat([torch.relu(small) * x[:, 2:], x], 1)

    x = torch.tensor([[1.0, 0.5, 2.0], [1.0, 0.9, 2.0]])
    found = exact.gradient(Edge().eval(), x, torch.ones(2, 4), engine="double_word", digits=19)
    pattern = r"pairs of float64, 106 bits, and Arb balls, \d+ bits for 1 of 2 samples"
    assert re.fullmatch(pattern, found.engine)
    assert found.radius is not None
    balls = exact.gradient(Edge().eval(), x, torch.ones(2, 4), digits=39, engine="ball")
    assert bool((abs(found.midpoint - balls.midpoint) <= found.radius + balls.radius).all())


def test_where_the_bound_is_too_wide_another_precision_must_agree():
    x = images(2)
    model = build("transformer_encoder")
    with torch.no_grad():
        v = normal(*model(x).shape, seed=7).double()
    found = exact.gradient(model, x, v, engine="double_word", digits=22)
    assert found.radius is None
    assert -96 < found.log2_error < -70
    balls = exact.gradient(model, x, v, digits=39, engine="ball")
    error = distance(found.midpoint, balls.midpoint) / norm(balls.midpoint)
    assert error < 2.0**found.log2_error  # the coarser run is farther off


def test_more_bits_than_pairs_have_are_refused():
    with pytest.raises(ValueError, match="use engine='ball'"):
        exact.gradient(
            build("lenet"), images(1), torch.ones(1, 10), engine="double_word", digits=39
        )


def test_flushing_to_zero_is_refused():
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this CPU cannot flush denormals")
        with pytest.raises(InexactProductError, match="set_flush_denormal"):
            device_checks.check_device(torch.device("cpu"))
    finally:
        torch.set_flush_denormal(False)
    device_checks.check_device(torch.device("cpu"))


def test_a_rounding_product_is_noticed():
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(2**22, 2**24, (2, 5, 30), generator=generator).double()
    right = torch.ones(30, 4).double()
    device_checks.spot_check(torch.matmul, part, right)

    def emulated(a, b):
        return (a.float() @ b.float()).double()

    with pytest.raises(InexactProductError, match="not plain float64"):
        device_checks.spot_check(emulated, part, right)


def test_every_network_is_spot_checked(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ozaki_product, "spot_check", lambda *a: seen.append(device_checks.spot_check(*a))
    )
    x = images(1)
    capture, classes = captured("lenet", x)
    BatchedNetwork(capture).gradient(x, torch.ones(1, classes))
    weights = sum(str(n.target) == "aten.convolution.default" for n in capture.forward)
    assert len(seen) >= 2 * weights


def test_relative_errors_are_infinite_where_nothing_is_known():
    zero = DoubleWords(
        *(torch.zeros(1, 3).double() for _ in range(2)), torch.ones(1).double(), None
    )
    assert log2_relative_errors(zero).isinf().all()


NUMBERS = st.lists(
    st.tuples(st.floats(-1, 1, allow_subnormal=False), st.integers(-40, 40)), min_size=3, max_size=3
)


@given(NUMBERS, NUMBERS, st.integers(-4000, 4000), st.integers(-4000, 4000))
@settings(max_examples=60, deadline=None)
def test_wide_vectors_are_those_of_mpmath(a, b, low, high):
    """Differences, multiples and signs of vectors anywhere, against mpmath."""
    words, mp = DoubleWordVectors(torch.device("cpu")), MpVectors(MpArithmetic(10_000))
    lists = [
        [mp.context.ldexp(mp.context.mpf(x), e + shift) for x, e in numbers]
        for numbers, shift in ((a, low), (b, high))
    ]
    found = [words.array(numbers) for numbers in lists]
    true = [mp.array(numbers) for numbers in lists]
    for mine, exact_vector in (
        (words.sub(*found), mp.sub(*true)),
        (words.sub(found[1], found[0]), mp.sub(true[1], true[0])),
        (words.div(words.mul(found[0], 7.0), 3.0), mp.div(mp.mul(true[0], 7.0), 3.0)),
    ):
        values, exponent = words.to_scaled(mine)
        reference, place = mp.to_scaled(exact_vector)
        # differences lose what cancels: both vectors are known to 2^-100 of their length
        lost = max(mp.to_scaled(v)[1] for v in true) - 95
        scale = max(exponent, place)
        apart = torch.ldexp(values, torch.tensor(max(exponent - scale, -1100)))
        apart = apart - torch.ldexp(reference, torch.tensor(max(place - scale, -1100)))
        if reference.any():
            assert float(apart.abs().max()) <= 2.0**-50 + 2.0 ** min(lost - scale, 0)
    for mine, numbers in zip(found, lists, strict=True):
        assert words.sign(mine).tolist() == [int(n > 0) - int(n < 0) for n in numbers]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_standard", "fashion_adversarial", "fashion_saturated"])
def test_the_same_relative_errors_as_with_balls(name):
    model, x = zoo.load(name), data.fashion_mnist_1000().x[:2]
    balls = fperr.measure(model, x, engine="ball", digits=20).frame
    words = fperr.measure(model, x, engine="double_word", digits=20)
    engine = next(iter(words.provenance.values()))["reference"]["engine"]
    assert engine == "pairs of float64, 106 bits for 2 of 2 samples"
    assert (words.frame["certainty"] == "proved").all()
    assert np.isclose(words.frame["delta"], balls["delta"], 1e-10, 0).all()
    for column in ("sign_error_rate", "is_dead", "flips_by_layer", "pooling_flips", "tie_flips"):
        assert words.frame[column].equals(balls[column]), column
    half = fperr.measure(model, x, engine="double_word", formats=["float16"])
    engine = next(iter(half.provenance.values()))["reference"]["engine"]
    assert engine == "pairs of float64, 63 bits for 2 of 2 samples"
    wanted = balls.loc[balls["format"] == "float16", "delta"]
    assert np.isclose(half.frame["delta"], wanted, 1e-8, 0).all()


@pytest.mark.slow
def test_routing_of_poolings_is_that_of_balls(fperr_data):
    model, x = zoo.load("mnist_lenet5_advtrained"), data.mnist_test().x[:3]
    options = {"losses": ["mifpe"], "formats": ["float16", "float32"], "digits": 20}
    words, balls = (fperr.measure(model, x, engine=e, **options) for e in ("double_word", "ball"))
    assert words.frame["flips_by_layer"].equals(balls.frame["flips_by_layer"])
    assert words.routing().equals(balls.routing())
    assert words.frame["pooling_flips"].sum() > 0
    for column in ("delta", "delta_frozen", "stage_backward", "stage_cast"):
        assert np.isclose(words.frame[column], balls.frame[column], 1e-10, 1e-20).all(), column


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_words_meet_the_balls_on_cuda(name):
    x, cuda = images(3), torch.device("cuda")
    with torch.no_grad():
        v = normal(3, build(name)(x).shape[1], seed=7).double()
    balls = exact.gradient(build(name), x, v, digits=digits_of(BALL_BITS), engine="ball")
    model = build(name).to(cuda)
    product, undecided = BatchedNetwork(exact.capture(model, x[:1].to(cuda)), device=cuda).gradient(
        x.to(cuda), v.to(cuda)
    )
    assert not undecided.any()
    for i in range(3):
        apart = distance(to_mpmath(product.of(i), WIDE), balls.midpoint[i])
        assert apart <= product.radius[i].item() + norm(balls.radius[i])
        assert apart <= norm(balls.midpoint[i]) * 1e-25
