"""float64 with float32 beside it: what is agreed is right; what would fool agreement is seen."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fperr import data, exact, zoo
from fperr.errors import UndecidedError
from fperr.exact.agreed_run import LOG2_SHARE
from fperr.exact.graph import capture
from fperr.exact.interpreter import Interpreter
from fperr.exact.monitored import arithmetic, watch
from fperr.exact.monitored.arithmetic import MonitoredArithmetic
from fperr.exact.monitored.array import MonitoredArray, norms
from fperr.exact.monitored.sizes import SampleSizes
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.exact.monitored_pair import Doubts, MonitoredPair
from fperr.exact.mp import MpArithmetic
from tests.conftest import slow_except
from tests.makers.networks import KINDS, NETWORKS, SIDE, build

REFERENCE = MpArithmetic(1000)  # far more digits than any of these networks loses


class Net(nn.Module):
    """A function of the inputs between two linear layers."""

    def __init__(self, function, *, first=False, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.function, self.first = function, first
        self.inner, self.outer = nn.Linear(4, 4, dtype=dtype), nn.Linear(4, 3, dtype=dtype)

    def forward(self, x):
        return self.outer(self.function(x if self.first else self.inner(x)))


def exact_gradients(model, x, v):
    """The gradients by mpmath, and None where it cannot decide."""
    network = Interpreter(capture(model, x[:1]), REFERENCE)
    gradients = []
    for i in range(len(x)):
        try:
            run = network.forward(x[i : i + 1])
            gradients.append(network.products(run.saved_values, REFERENCE.from_torch(v[i : i + 1])))
        except UndecidedError:
            gradients.append(None)
    return gradients


def log2_true_errors(found, gradients):
    """log2 |found - exact|/|exact| of each sample; -inf where both are 0."""
    errors = []
    for row, truth in zip(found.gradient, gradients, strict=True):
        if truth is None:
            errors.append(math.nan)
            continue
        difference = REFERENCE.sub(REFERENCE.from_torch(row[None]), truth)
        norms = [
            REFERENCE.context.sqrt(REFERENCE.context.fsum(value**2 for value in array.reshape(-1)))
            for array in (difference, truth)
        ]
        if norms[0] == 0:
            errors.append(-math.inf)
        else:
            ratio = norms[0] / norms[1] if norms[1] else REFERENCE.context.inf
            errors.append(float(REFERENCE.context.log(ratio, 2)))
    return torch.tensor(errors, dtype=torch.float64)


def judged(model, x, *, seed=0):
    """What the network claims at x, and the true errors."""
    model = model.eval()
    classes = model(x).shape[1]
    v = torch.randn(len(x), classes, generator=torch.Generator().manual_seed(seed)).double()
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, v)
    return found, log2_true_errors(found, exact_gradients(model, x, v))


def are_wrong(found, errors):
    """The samples that are agreed and further off than is claimed."""
    return found.are_agreed & (errors > found.log2_error)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mish_by_hand(x):
    return x * torch.tanh(torch.log(1 + torch.exp(x)))


def zero_sum(x):
    """A filter that sums to 0, on windows of a row of which some are constant."""
    filters = torch.tensor([[[0.1, 0.2, -0.3]]], dtype=x.dtype)
    return F.pad(torch.relu(F.conv1d(x[:, None], filters))[:, 0], (0, 2))


def one_unit_cancels(x):
    """relu(1e17 tanh(-1e-17 x)) in the first unit, which float64 sums to noise; x in the others."""
    first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    sums = (x + 2 * first * x) - first * x - 2 * first * x - 1e-17 * first * x
    return torch.relu(torch.tanh(sums)) * (1 + 1e17 * first)


def amplified(x, times, last=1.0):
    """x times a power of two that no float32 holds."""
    for _ in range(times):
        x = 2.0**100 * x
    return last * x


def attention(scores, values):
    """The sums of values (samples, n), weighted by softmax of products of scores."""
    weights = torch.softmax(scores[:, :, None] * values[:, None, :], -1)
    return (weights @ values[:, :, None])[:, :, 0]


FAR = 2.0**63 + 2**11  # numbers near it are 2^11 apart


def scaled_first(factor):
    """A layer that multiplies the first of two numbers."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.diag(torch.tensor([factor, 1.0]))
    return layer


class Standardised(nn.Module):
    """Filters that almost sum to 0, in float64, and what a second layer makes of flat patches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        filters = torch.randn(8, 1, 3, 3, dtype=torch.float64)
        self.first = nn.Conv2d(1, 8, 3, bias=False, dtype=torch.float64)
        self.first.weight.data = filters - filters.mean((1, 2, 3), keepdim=True)
        self.second = nn.Conv2d(8, 8, 1, bias=False, dtype=torch.float64)
        self.head = nn.Linear(8 * 36, 4, dtype=torch.float64)

    def forward(self, x):
        return self.head(torch.relu(self.second(self.first(x))).flatten(1))


LARGE_AND_SMALL = torch.diag(2.0 ** torch.tensor([60.0, 0.0, 0.0, 0.0]))


class OneUnitBehindAWeight(Net):
    """A unit that a sum absorbs, beside others that it does not, and a weight that needs it."""

    def __init__(self, share):
        super().__init__(None)
        self.share = share
        self.rescale = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.rescale.weight.copy_(torch.diag(torch.tensor([1 / share, 1.0, 1.0, 1.0])))

    def forward(self, x):
        first = torch.tensor([1.0, 0.0, 0.0, 0.0])
        y = self.inner(x) * (1 - first + self.share * first) + 1.1 - 1.1
        return self.outer(torch.tanh(self.rescale(y)))


def chain(function, times):
    def run(x):
        for _ in range(times):
            x = function(1.3 * x - 0.2)
        return x

    return run


TRAPS = {
    "absorption": (Net(lambda x: torch.tanh((x + 2.0**110) - 2.0**110), dtype=torch.float64), 1.0),
    "absorption of the other": (Net(lambda x: torch.tanh(2.0**70 - (2.0**70 - x))), 1.0),
    "absorption in steps": (
        Net(lambda x: torch.tanh(((x + 2.0**30) + 2.0**80) - 2.0**80 - 2.0**30)), 1.0,
    ),
    "mish at -40": (Net(mish_by_hand, first=True), "-40"),
    "mish at -20": (Net(mish_by_hand, first=True), "-20"),
    "logarithm beside 1": (
        Net(lambda x: torch.tanh(2.0**60 * torch.log((x + 2.0**60) / 2.0**60)), first=True), 1.0,
    ),
    "logarithm close to 1": (Net(lambda x: torch.log(1 + 2.0**-40 * x) * 2.0**40), 1.0),
    "saturated tanh": (Net(lambda x: torch.tanh(60 * (1 + x.abs()))), 1.0),
    "tanh that saturates in float32": (Net(lambda x: torch.tanh(8 * (1 + x.abs()))), 1.0),
    "saturated softmax": (Net(lambda x: torch.softmax(400 * x, 1)), 1.0),
    "sharp softmax": (Net(lambda x: torch.softmax(30 * x, 1)), 1.0),
    "products that underflow": (Net(lambda x: (1e-30 * x) * (1e-30 * x) * 1e60), 1.0),
    "underflow in float64": (Net(lambda x: (1e-200 * x) * (1e-200 * x) * 1e300), 1.0),
    "exponential that underflows": (Net(lambda x: torch.exp(-150 - x.abs()) * 1e30), 1.0),
    "a filter that sums to 0": (Net(zero_sum, first=True), "constant"),
    "near tie": (Net(lambda x: torch.relu(x * 3 - x - 2 * x + 1e-17 * x) * 1e17), 1.0),
    "near tie of one unit behind a function": (Net(one_unit_cancels), 1.0),
    "near tie in float32": (Net(lambda x: torch.relu((x * 3 - x - 2 * x) + 1e-9 * x) * 1e9), 1.0),
    "one unit is absorbed in both": (OneUnitBehindAWeight(1e-25), 1.0),
    "one unit is absorbed in float32": (OneUnitBehindAWeight(1e-12), 1.0),
    "deep SiLU": (Net(chain(F.silu, 24)), 1.0),
    "deep GELU": (Net(chain(F.gelu, 12)), 1.0),
    "layer norm of nearly equal numbers": (
        Net(lambda x: F.layer_norm(1e4 + 1e-3 * x, (4,), eps=0.0)), 1.0,
    ),
    "exponential that float64 loses": (
        Net(lambda x: amplified(torch.exp(x - 800), 11, 2.0**54), first=True), 1.0,
    ),
    "exponential that float64 loses beside others": (
        Net(lambda x: x + amplified(torch.exp(x - 800), 11, 2.0**54), first=True), 1.0,
    ),
    "subnormal exponential": (
        Net(lambda x: x + amplified(torch.exp(x - 740), 10, 2.0**67), first=True), 1.0,
    ),
    "softmax weight that vanishes": (
        Net(lambda x: x + amplified(torch.softmax(300 * x, 1), 10), first=True), 1.0,
    ),
    "logarithm of a weight that vanishes": (
        Net(lambda x: x + torch.log(torch.softmax(400 * x, 1)), first=True), 1.0,
    ),
    "logarithm of a sum that vanishes": (
        Net(lambda x: torch.log(torch.exp(x - 800) @ torch.ones(4, 4)), first=True), 1.0,
    ),
    "zeros behind a large weight": (
        Net(lambda x: (x + 2.0**60 - 2.0**60) @ LARGE_AND_SMALL + x),
        1.0,
    ),
    "a saturated unit behind weights": (
        nn.Sequential(*[scaled_first(1e3) for _ in range(6)], scaled_first(1.0), nn.Tanh()),
        torch.tensor([[2e-17, 1.0]]),
    ),
    "a GELU that is nearly 0 behind a weight": (
        nn.Sequential(scaled_first(1e17), nn.GELU()), torch.tensor([[-9e-17, 1.0]]),
    ),
    "the cube of what is absorbed": (
        Net(lambda x: x + ((x + 2.0**110) - 2.0**110) ** 3, first=True), 1.5,
    ),
    "a slope at a wrong argument": (
        Net(lambda x: 3 * x + torch.exp(-(((x + FAR) - FAR) - 1028) ** 2), first=True),
        torch.full((2, 4), 1030.0),
    ),
    "filters of weights minus their mean": (Standardised(), "half flat"),
    "saturated attention": (Net(lambda x: attention(300 * x, x)), 1.0),
    "difference of squares": (Net(lambda x: (x + 1e6) ** 2 - (x - 1e6) ** 2 - 4e6 * x + x), 1.0),
}  # fmt: skip


def points(where, count=8):
    if isinstance(where, torch.Tensor):
        return where
    if where == "half flat":
        images = normal(3, 1, 8, 8)
        images[:, :, :, 3:] = images[:, :, :1, 3:4]
        return images
    x = normal(count, 4)
    if where == "constant":
        x[:, 1:] = x[:, :1]
        return x
    if isinstance(where, str):
        return 0.1 * x + float(where)
    return where * x


@pytest.mark.parametrize("name", TRAPS)
def test_no_trap_is_agreed_and_wrong(name):
    model, where = TRAPS[name]
    x = points(where).to(next(model.parameters()).dtype)
    found, errors = judged(model, x)
    assert not are_wrong(found, errors).any(), (found.log2_error, errors, found.doubts)


@pytest.mark.slow
def test_a_difference_that_is_small_by_luck_is_not_believed():
    """One number, 4,000 times: float32 comes close by chance where float64 has lost 13 bits."""
    model = Scalar().eval()
    x = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, torch.ones(4000, 1).double())
    finer = exact.gradient(model, x, torch.ones(4000, 1), engine="double_word", digits=20)
    truth = finer.to_torch()
    errors = torch.log2((found.gradient - truth).abs() / truth.abs())[:, 0]
    assert found.are_agreed.sum() > 1000
    assert not are_wrong(found, errors).any()


def test_a_logit_near_0_is_no_influence_of_the_batch():
    torch.manual_seed(1)
    layers = (nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = torch.linspace(-1, 1, 1500, dtype=torch.float64)[:, None]
    near = x[model(x).abs()[:, 0].argsort()]  # the logits closest to 0 first
    exact.gradient(model, near, torch.ones(1500, 1), engine="float64")


class Scalar(nn.Module):
    """tanh of a number that an offset has passed through."""

    def forward(self, x):
        return torch.tanh((x + 1000.1) - 1000.1)


def unwatched(monkeypatch):
    """Every rule switched off: agreement of two runs alone."""
    monkeypatch.setattr(MonitoredArithmetic, "_doubt", lambda *_: None)
    monkeypatch.setattr(arithmetic, "is_ill_conditioned", lambda *_: ())
    monkeypatch.setattr(Doubts, "note", lambda *_: None)


def test_agreement_alone_is_fooled(monkeypatch):
    """The negative control: without the rules, these are agreed and wrong."""
    unwatched(monkeypatch)
    fooled = set()
    for name, (model, where) in TRAPS.items():
        x = points(where).to(next(model.parameters()).dtype)
        if are_wrong(*judged(model, x)).any():
            fooled.add(name)
    assert fooled >= {
        "absorption", "mish at -40", "logarithm beside 1", "saturated tanh",
    }, fooled  # fmt: skip


@pytest.mark.parametrize("name", ["fashion_standard", "fashion_adversarial", "fashion_saturated"])
def test_packaged_networks_are_agreed_at_random_starts(name):
    images = data.fashion_mnist_1000().first(100)
    noise = torch.rand(images.x.shape, generator=torch.Generator().manual_seed(0))
    x = (images.x + 0.1 * (2 * noise - 1)).clamp(0, 1)
    model = zoo.load(name)
    v = torch.randn(100, 10, generator=torch.Generator().manual_seed(1)).double()
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, v)
    assert int(found.are_agreed.sum()) >= 99, found.doubts
    finer = exact.gradient(model, x[:20], v[:20], engine="double_word", digits=22)
    difference = found.gradient[:20] - finer.to_torch().flatten(1)
    errors = difference.norm(dim=1) / finer.to_torch().flatten(1).norm(dim=1)
    assert (errors <= torch.exp2(found.log2_error[:20])).all()


def test_the_claim_is_a_share_of_the_difference(monkeypatch):
    """A follower that is off by more claims more: the claim is read off the difference."""
    model, x = Net(torch.tanh).eval(), normal(4, 4)
    v = normal(4, 3).double()
    network = MonitoredNetwork(capture(model, x[:1]))
    before = network.gradient(x, v).log2_error
    tanh = MonitoredArithmetic.tanh

    def off(self, a):
        result = tanh(self, a)
        return result.moved(lambda t: t * (1 + 2.0**-8)) if self.follows else result

    monkeypatch.setattr(MonitoredArithmetic, "tanh", off)
    after = network.gradient(x, v).log2_error
    assert (after > before + 8).all()
    assert (after < LOG2_SHARE).all()


@pytest.mark.parametrize("factor", [1 + 2.0**-20, 1 + 2.0**-35])
def test_a_sabotaged_leader_is_caught(factor, monkeypatch):
    """What float64 has wrong alone shows in the difference, as far as float32 can see."""
    model, x = Net(torch.tanh).eval(), normal(4, 4)
    v = normal(4, 3).double()
    tanh = MonitoredArithmetic.tanh

    def off(self, a):
        result = tanh(self, a)
        return result if self.follows else result.moved(lambda t: t * factor)

    monkeypatch.setattr(MonitoredArithmetic, "tanh", off)
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, v)
    errors = log2_true_errors(found, exact_gradients(model, x, v))
    # a ladder's next rung sees this: the claim of float64 is far below the difference to it
    assert (errors > found.log2_error + 4).all()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(sorted(STEPS := {
        "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "relu": torch.relu,
        "softmax": lambda x: torch.softmax(x, 1), "log": lambda x: torch.log(1 + x * x),
        "exp": lambda x: torch.exp(-x.abs()), "shift": lambda x: (x + 2.0**20) - 2.0**20,
        "square": lambda x: x * x, "divide": lambda x: x / (1e-3 + x * x),
        "scale": lambda x: 40 * x,
        "centre": lambda x: x - x.mean(1, keepdim=True), "sigmoid": torch.sigmoid,
        "norm": lambda x: F.layer_norm(x, (4,)), "add": lambda x: x + torch.flip(x, (1,)),
    })), min_size=1, max_size=6),
    st.integers(0, 1000),
)  # fmt: skip
def test_random_chains_are_never_agreed_and_wrong(names, seed):
    def run(x):
        for name in names:
            x = STEPS[name](x)
        return x

    found, errors = judged(Net(run, seed=seed), normal(4, 4, seed=seed), seed=seed)
    assert not are_wrong(found, errors).any(), (found.log2_error, errors, found.doubts)


def test_masked_classes_are_left_out():
    class Masked(Net):
        def forward(self, x):
            mask = torch.tensor([0.0, 0.0, -torch.inf])
            return super().forward(x) + mask

    model, x = Masked(torch.tanh).eval(), normal(3, 4)
    v = torch.tensor([[1.0, -1.0, 0.0]]).double().expand(3, -1)
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, v)
    assert found.are_agreed.all(), found.doubts


def test_a_branch_behind_a_function_knows_what_its_argument_lost():
    """tanh of what cancellation has left is as uncertain as that.

    Value numbers know that the first sums are 0, so they are not asked.
    """
    model, where = TRAPS["near tie of one unit behind a function"]
    x, doubts = points(where), Doubts()
    MonitoredPair(capture(model.eval(), x[:1]), "cpu", "by entry").forward(x, doubts)
    assert set(doubts.of_samples(len(x))) == {watch.Rule.UNDECIDED.sentence(torch.float64)}


def test_the_words_of_a_doubt():
    model, where = TRAPS["saturated tanh"]
    found, _ = judged(model, points(where))
    assert set(found.doubts) == {watch.Rule.VANISHED.sentence(torch.float64)}
    assert found.doubts[0] == "a number that is not 0 vanishes in float64"
    assert found.log2_error.isposinf().all()


@pytest.mark.parametrize("name", slow_except(NETWORKS, KINDS))
def test_networks_of_every_kind(name):
    model = build(name)
    x = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    v = torch.randn(8, model(x).shape[1], generator=torch.Generator().manual_seed(1)).double()
    found = MonitoredNetwork(capture(model, x[:1])).gradient(x, v)
    finer = exact.gradient(model, x, v, engine="double_word", digits=20).to_torch().flatten(1)
    errors = (found.gradient - finer).norm(dim=1) / finer.norm(dim=1)
    assert (errors <= torch.exp2(found.log2_error)).all()
    assert found.are_agreed.all(), found.doubts


def forward_and_back(model, x, sizes):
    """The forward values of float64, and the doubts of a run with a pullback."""
    pair, doubts = MonitoredPair(capture(model, x[:1]), "cpu", sizes), Doubts()
    run = pair.forward(x, doubts)
    v = torch.randn(len(x), model(x).shape[1], generator=torch.Generator().manual_seed(1)).double()
    saved = [run.leader.saved_values, run.follower.saved_values]
    pair.pullback(saved, [v, v], doubts)
    return run.leader.values, [doubt is not None for doubt in doubts.of_samples(len(x))]


def are_above(coarse, fine):
    """Whether the bounds of samples are at least the sizes of numbers, at every node of numbers."""
    of_coarse, of_fine = arithmetic.SAMPLE_SIZES, arithmetic.ENTRY_SIZES
    # a share for the roundings of sizes, which are computed in float32
    return all(
        bool((of_coarse.of(coarse[name]) * (1 + 2.0**-10) >= of_fine.of(array)).all())
        for name, array in fine.items()
        if isinstance(array, MonitoredArray)
    )


@pytest.mark.parametrize("name", [*NETWORKS, *TRAPS])
def test_bounds_for_samples_doubt_whatever_sizes_of_numbers_doubt(name):
    if name in TRAPS:
        model, where = TRAPS[name]
        model, x = model.eval(), points(where).to(next(model.parameters()).dtype)
    else:
        model, x = build(name), normal(8, 3, SIDE, SIDE)
    values, in_doubt = forward_and_back(model, x, "coarse")
    finer_values, finer_doubts = forward_and_back(model, x, "by entry")
    assert are_above(values, finer_values)
    assert all(coarse >= fine for coarse, fine in zip(in_doubt, finer_doubts, strict=True))


def test_bounds_that_are_too_small_are_noticed(monkeypatch):
    """The negative control: a bound without the norm of the weights."""
    model, x = build("lenet"), normal(8, 3, SIDE, SIDE)
    finer_values, _ = forward_and_back(model, x, "by entry")
    monkeypatch.setattr(SampleSizes, "of_product", lambda *use: 2.0**-8 * norms(use[2].values))
    values, _ = forward_and_back(model, x, "coarse")
    assert not are_above(values, finer_values)


class InvertedResidual(nn.Module):
    """The block of MobileNetV3: depthwise filters, squeeze and excitation, Hardswish."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.expand, self.project = nn.Conv2d(3, width, 1), nn.Conv2d(width, 4, 1)
        self.depthwise = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        y = F.hardswish(self.norm(self.depthwise(F.hardswish(self.expand(x)))))
        weights = F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        y = y * F.hardsigmoid(self.excite(weights))
        return self.project(y).mean((2, 3))


def test_depthwise_filters_and_piecewise_functions_are_agreed():
    model, x = InvertedResidual().eval(), normal(4, 3, SIDE, SIDE)
    found, errors = judged(model, x)
    assert found.are_agreed.all(), found.doubts
    assert not are_wrong(found, errors).any(), (found.log2_error, errors)


def test_a_sum_that_is_0_does_no_harm_beside_larger_numbers():
    """A gradient that has the mean 0 enters a normalisation, as behind another one."""

    def centred_twice(x):
        centred = x - x.mean(1, keepdim=True)
        return centred - centred.mean(1, keepdim=True)

    found, errors = judged(Net(centred_twice), normal(8, 4))
    assert found.are_agreed.all(), found.doubts
    assert not are_wrong(found, errors).any()
