"""The audit of values: PyTorch in float64 confirms the exact network, or names what differs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import data, exact, zoo
from fperr.errors import ContradictedError, ReferenceNotCertifiedError
from fperr.exact import index_arrays
from fperr.exact.audit import float64_error, float64_run
from fperr.exact.audit.samples import audit_values
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.graph import probe
from fperr.exact.node_kinds import kinds_of
from fperr.exact.operations import OPERATIONS
from tests.conftest import Of, at_most, normal, seeded, tiny_mlp
from tests.makers.digits import digits_of
from tests.makers.networks import NETWORKS, SIDE, build

WEIGHT = normal(3, 6, seed=9)
ZOO = ("fashion_standard", "fashion_saturated", "fashion_adversarial")


def subject(name):
    """A network and inputs: images for the packaged ones, random numbers for the others."""
    if name in ZOO:
        return zoo.load(name), data.fashion_mnist_1000().x[:10]
    generator = torch.Generator().manual_seed(1)
    return build(name), torch.rand(4, 3, SIDE, SIDE, generator=generator)


class ExactRun:
    """A batch through pairs of float64, and its audit with an error added to the gradient."""

    def __init__(self, model, x):
        network = BatchedNetwork(exact.capture(model, x[:1]))
        self.x, self.v = x, probe(model(x)).double()
        self.batch = network.forward(x)
        entering = network.arithmetic.from_samples(self.v[:, None])
        g, _ = network.pullback(self.batch.run.saved_values, entering)
        self.gradient = (g.high + g.low).expand(len(x), -1)
        self.interpreter = network.interpreter

    def audit(self, added=0.0, samples=slice(None)):
        exponents = torch.zeros(len(self.x), dtype=torch.int64)
        known = torch.zeros(len(self.x), dtype=torch.bool)
        known[samples] = True
        return audit_values(
            self.interpreter,
            self.batch.run,
            self.x,
            self.v,
            (self.gradient + added, exponents),
            off=torch.zeros(len(self.x)),
            is_usable=known,
        )


@pytest.mark.parametrize("name", [*ZOO, *NETWORKS])
def test_networks_are_confirmed_with_a_small_estimate(name):
    run = ExactRun(*subject(name))
    audits = run.audit()
    assert {a.verdict for a in audits} == {"confirmed"}
    estimates = torch.tensor([a.estimate for a in audits])
    assert float(estimates.median()) <= 2.0**-40
    # and something was compared: float64 does round
    assert max(a.difference for a in audits) > 2.0**-60


@pytest.mark.parametrize("name", ["fashion_standard", "fashion_saturated", "resnet", "vit_mha"])
def test_eight_times_the_estimate_is_contradicted_and_an_eighth_is_not(name):
    run = ExactRun(*subject(name))
    honest = run.audit()
    direction = normal(*run.gradient.shape, seed=11).double()
    size = torch.tensor([a.estimate for a in honest])[:, None] * run.gradient.norm(dim=1)[:, None]
    unit = direction / direction.norm(dim=1, keepdim=True) * size
    assert {a.verdict for a in run.audit(unit / 8)} == {"confirmed"}
    for sample in range(2):
        with pytest.raises(ContradictedError, match=f"sample {sample}: PyTorch in float64"):
            run.audit(8 * unit, sample)


def _times(factor):
    return lambda right: lambda A, *a, **o: A.mul(right(A, *a, **o), factor)


def _opposite(right):
    return lambda A, *a, **o: ~right(A, *a, **o)


def _next_index(right):
    def wrong(A, *arguments):
        values, indices = right(A, *arguments)
        return values, indices + 1 - 2 * (indices % 2)

    return wrong


def _first_index_again(right):
    return lambda A, a, dim, index, **o: right(A, a, dim, index * 0, **o)


def _swapped(right):
    return lambda A, mask, a, b: right(A, mask, b, a)


def _rolled(right):
    return lambda A, a, indices: right(A, a, [i if i is None else np.roll(i, 1) for i in indices])


# family -> network, operation, what is wrong with its meaning
SABOTAGES = {
    "arithmetic": (lambda x: x * x.flip(1), "aten.mul.Tensor", _times(1 + 2.0**-30)),
    "a sum": (lambda x: x.sum(1, keepdim=True) * x, "aten.sum.dim_IntList", _times(1.001)),
    "a product of matrices": (
        lambda x: x @ torch.ones(6, 3, dtype=x.dtype),
        "aten.mm.default",
        _times(1 + 2.0**-30),
    ),
    "an elementary function": (lambda x: x.tanh(), "aten.tanh.default", _times(1 + 2.0**-30)),
    "an activation": (F.gelu, "aten.gelu_backward.default", _times(-1.0)),
    "a slope that is lost": (torch.tanh, "aten.tanh_backward.default", _times(0.0)),
    "a slope that nearly is": (torch.tanh, "aten.tanh_backward.default", _times(2.0**-60)),
    "tiny numbers": (
        lambda x: x.tanh() * 2.0**-560,
        "aten.tanh_backward.default",
        _times(0.5),
    ),
    "a comparison": (
        lambda x: torch.where(x > 0.1, 2 * x, x),
        "aten.gt.Scalar",
        _opposite,
    ),
    "a comparison at a tie": (
        lambda x: torch.where(x / 3 >= x * 2 / 6, 2 * x, x),
        "aten.ge.Tensor",
        lambda _: OPERATIONS["aten.gt.Tensor"].meaning,
    ),
    "a maximum": (
        lambda x: F.max_pool2d(x[:, None, None], (1, 2))[:, 0, 0],
        "aten.max_pool2d_with_indices.default",
        _next_index,
    ),
    "a logical operation": (
        lambda x: torch.where(x.logical_and(x > 0), 2 * x, x),
        "aten.logical_and.default",
        _opposite,
    ),
    "a mask": (lambda x: torch.where(x > 0, 2 * x, x), "aten.where.self", _swapped),
    "an index": (
        lambda x: x.gather(1, x.argmax(1, keepdim=True)) * x,
        "aten.gather.default",
        _first_index_again,
    ),
    "indices": (lambda x: x[:, [0, 3, 3]] * x[:, :3], "aten.index.Tensor", _rolled),
}


@pytest.mark.parametrize("family", SABOTAGES)
def test_a_sabotaged_operation_is_caught_by_the_audit_alone(monkeypatch, family):
    function, name, change = SABOTAGES[family]
    model, x = Of(function).eval(), normal(2, 6, seed=3).double()
    v = normal(*model(x).shape, seed=4).double()
    assert {a.verdict for a in exact.gradient(model, x, v, engine="mpmath").audits} == {"confirmed"}
    right = OPERATIONS[name]
    monkeypatch.setitem(OPERATIONS, name, replace(right, meaning=change(right.meaning)))
    with pytest.raises(ContradictedError, match=r"PyTorch in float64") as refusal:
        exact.gradient(model, x, v, engine="mpmath")
    if family not in ("a comparison at a tie", "an index", "a maximum"):
        assert name in str(refusal.value)  # the first operation whose value differs
    assert " in float64, " in str(refusal.value)
    assert " exactly, at (" in str(refusal.value)


def test_sabotaged_integers_and_constants_are_caught(monkeypatch):
    def counted(x):
        return x * ((x > 0).sum(1, keepdim=True) + 1)

    model, x = Of(counted).eval(), normal(2, 6, seed=3).double()
    right = index_arrays.computed
    monkeypatch.setattr(
        index_arrays, "computed", lambda *a: right(*a) + (1 if "add" in str(a[0]) else 0)
    )
    with pytest.raises(ContradictedError, match=r"aten.add.Tensor"):
        exact.gradient(model, x, normal(2, 6), engine="ball")
    monkeypatch.undo()

    def sabotaged(module, x, v):
        kinds = kinds_of(module, x, v)
        return replace(kinds, made={name: value + 0.25 for name, value in kinds.made.items()})

    model = Of(lambda x: x * torch.full((6,), 0.5, dtype=x.dtype)).eval()
    assert exact.gradient(model, x, normal(2, 6), engine="ball").audits[0].verdict == "confirmed"
    monkeypatch.setattr("fperr.exact.graph.kinds_of", sabotaged)
    with pytest.raises(ContradictedError, match=r"aten.full.default"):
        exact.gradient(model, x, normal(2, 6), engine="ball")


# functions that float64 cannot compute at normal inputs, whatever they are exactly
HOPELESS = {
    "absorption": lambda x: (x + 2.0**110) - 2.0**110,
    "saturation": lambda x: torch.tanh(60 * (1 + x.abs())),
    "underflow": lambda x: torch.exp(x - 800),
    "a tail": lambda x: F.gelu(x - 12),
    "a logarithm of 1": lambda x: (x - 40) * torch.tanh(torch.log(1 + torch.exp(x - 40))),
    "a product that vanishes": lambda x: torch.exp(x - 800) * 2.0**600 * 2.0**600,
    "a late overflow": lambda x: torch.exp(x + 800) / 2.0**1000,
}


def _sum_of_parts(a):
    """a, from 49 times a/49: float64 is off by a rounding or two, either way."""
    return torch.stack([a / 49] * 49, 1).sum(1)


def _beside_a_mask(x):
    """A comparison of equal numbers, with an infinite one in the same tensor."""
    a, b = _sum_of_parts(x), x
    masked = torch.tensor([True, *[False] * 5])
    return torch.where(a.masked_fill(masked, -torch.inf) >= b, 2 * x, x)


# functions that float64 computes more or less well, all of them right exactly: no false alarm
CANCELLING = {
    "one added": lambda x: (x / 1e3 + 1) - 1,
    "one added to less": lambda x: (x / 1e4 + 1) - 1,
    "near a half": lambda x: (x / 100).sigmoid() - 0.5,
    "absorption just above a power": lambda x: (x + 1.01 * 2.0**110) - 1.01 * 2.0**110,
    "a kink after absorption": lambda x: F.relu((x * 2.0**-60 + 1) - 1) + x,
    "a comparison after saturation": lambda x: x * (torch.tanh(40 * (1 + x.abs())) < 1),
    "a tie beside a mask": _beside_a_mask,
    "a subnormal number": lambda x: torch.exp(x - 740) * 2.0**600 * 2.0**460,
    "a product of tiny matrices": lambda x: (
        ((x * 2.0**-600) @ (torch.eye(6, dtype=x.dtype) * 2.0**-600)) * 2.0**600 * 2.0**600
    ),
    "the largest of two equal numbers": lambda x: (
        torch.stack([_sum_of_parts(x), x], 2).argmax(2) * x
    ),
    "a constant row": lambda x: F.layer_norm(0 * x + 0.1 + 1e-9 * x, (6,)),
    "a log of probabilities": lambda x: F.log_softmax(40 * x, 1),
    "a tail": lambda x: F.silu(x - 30) + F.elu(x - 30) + F.softplus(x - 30),
    "a mask and Python numbers": lambda x: x * ((x > 0) * 0.9 + 0.1) + x / ((x > 0) + 7),
    "a count and Python numbers": lambda x: (
        x * ((x > 0).sum(1, keepdim=True) / 7 + (x.argmax(1, keepdim=True) + 1).sqrt() * 0.1)
    ),
    "parameters that cancel": lambda x: (
        x @ F.layer_norm(1 + 1e-4 * WEIGHT.to(x), (6,), eps=1e-12).t()
    ),
    "a quiet softmax": lambda x: (
        x * torch.tensor([0.0, 20, 1, 0, 0, 1], dtype=x.dtype).add(x / 9).softmax(1)
    ),
    "an exponential less one": lambda x: (x / 1e6).exp() - 1,
    "a constant row but one": lambda x: F.layer_norm(
        torch.cat([0 * x + 0.3, 0.3 + 1e-6 * x[:, :1]], 1), (7,), eps=1e-12
    ),
    "a mean removed": lambda x: (x - x.mean(1, keepdim=True)) * 1e8,
}


@pytest.mark.parametrize("function", CANCELLING.values(), ids=CANCELLING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cancellation_is_no_false_alarm(function, dtype):
    model = Of(function).eval()
    for seed in range(3):
        x = normal(3, 6, seed=seed).to(dtype)
        v = normal(*model(x).shape, seed=seed + 50).to(dtype)
        found = exact.gradient(model, x, v, engine="double_word", digits=20)
        assert found.log2_error <= -64


@pytest.mark.parametrize("function", HOPELESS.values(), ids=HOPELESS)
@pytest.mark.parametrize("engine", ["ball", "double_word"])
def test_where_float64_cannot_say_nothing_is_taken_from_the_proof(function, engine):
    model, x = Of(function).eval(), normal(2, 6, seed=3).double()
    found = exact.gradient(model, x, normal(2, 6, seed=4).double(), engine=engine, digits=20)
    assert {a.verdict for a in found.audits} == {"float64 cannot say"}
    assert found.log2_error <= -64
    assert found.radius is not None


def test_a_report_counts_what_float64_could_not_say():
    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = tiny_mlp().double()[2]

        def forward(self, x):
            return self.last(torch.tanh(60 * (1 + x.abs())))

    x = torch.cat([normal(2, 8, seed=3), normal(2, 8, seed=5)]).double()
    options = {"losses": ["ce"], "formats": ["float64"], "engine": "ball", "progress": False}
    frame = fperr.measure(Saturated().eval(), x, **options).frame
    assert set(frame["value_audit"]) == {"float64 cannot say"}
    assert (frame["certainty"] == "proved").all()
    plain = fperr.measure(tiny_mlp().double(), normal(2, 6).double(), **options).frame
    assert set(plain["value_audit"]) == {"confirmed"}


def test_the_estimate_is_needed(monkeypatch):
    """Negative control: where nothing is allowed, what float64 rounds off is a contradiction."""
    model = seeded(nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 4))).double()
    x, v = normal(3, 6).double(), normal(3, 4).double()
    assert {a.verdict for a in exact.gradient(model, x, v, engine="ball").audits} == {"confirmed"}
    monkeypatch.setattr(float64_error, "SAFETY", 0.0)
    monkeypatch.setattr(float64_error, "LEAST_ROUNDINGS", 0.0)
    with pytest.raises(ContradictedError, match=r"float64 is off by about \d"):
        exact.gradient(model, x, v, engine="ball")
    monkeypatch.undo()
    # without the copies' noise the cancellation in this one looks like an error
    model = Of(lambda x: (x / 1e4 + 1) - 1).eval()
    assert exact.gradient(model, x, normal(3, 6).double(), engine="ball").log2_error <= -128
    monkeypatch.setattr(float64_run._Run, "_changed", lambda *arguments: arguments[1])
    with pytest.raises(ContradictedError):
        exact.gradient(model, x, normal(3, 6).double(), engine="ball")


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize("bits", [13, 40, 80])
def test_an_exact_network_of_few_digits_is_no_contradiction(engine, bits):
    """What balls and pairs are off by is theirs to know: logits may have fewer digits than v J."""
    model = Of(lambda x: F.softplus(x - 10)).eval()
    for shift in (0.0, -20.0, -90.0):
        x = normal(2, 6, seed=3) + shift
        try:
            found = exact.gradient(
                model, x, normal(2, 6), engine=engine, digits=at_most(engine, digits_of(bits))
            )
        except ReferenceNotCertifiedError:
            assert engine == "mpmath"  # which says that its digits are too few
            assert shift < -50
        else:
            assert found.log2_error <= -bits


def test_mpmath_says_so_where_its_digits_saturate():
    """1 - tanh(200)^2 is 7.7e-174, and nothing at 168 bits or at twice as many."""
    model = Of(torch.tanh).eval()
    x, v = torch.tensor([[200.0, 210.0]]), torch.ones(1, 2)
    with pytest.raises(ReferenceNotCertifiedError, match=r"agreement with \d+ proves nothing"):
        exact.gradient(model, x, v, engine="mpmath")
    balls = exact.gradient(model, x, v, engine="ball")  # the remedy
    assert float(balls.midpoint[0, 0]) == pytest.approx(7.66e-174, rel=1e-3)


def test_mpmath_says_so_where_it_cannot_compare():
    """x/3 + y/3 and (x + y)/3 are equal, and differ in mpmath's last digit."""

    def function(x):
        a, b = x[:, 0] / 3 + x[:, 1] / 3, (x[:, 0] + x[:, 1]) / 3
        return x.gather(1, torch.stack([a, b], 1).max(1, keepdim=True)[1]) + x

    model, v = Of(function).eval(), torch.ones(1, 2)
    refused = 0
    for seed in range(12):
        x = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed))
        ball = exact.gradient(model, x, v, engine="ball", digits=19)
        assert ball.to_torch().tolist() == [[3.0, 1.0]]  # the first of equal numbers
        try:
            found = exact.gradient(model, x, v, engine="mpmath", digits=19)
        except ReferenceNotCertifiedError:
            refused += 1
        else:
            assert found.to_torch().tolist() == [[3.0, 1.0]]
    assert refused > 0


def test_branches_follow_the_exact_ones_where_float64_cannot_tell(monkeypatch):
    """49 times a/49 less b is 0 where a = b, and float64 has it on either side of ReLU's kink."""

    def function(x):
        a, b = x.chunk(2, 1)
        return F.relu(torch.stack([a / 49] * 49, 1).sum(1) - b) + a + b

    model = Of(function).eval()
    x, v = normal(20, 3, seed=3).double().repeat(1, 2), torch.ones(20, 3)
    leaf = x.clone().requires_grad_()
    (float64,) = torch.autograd.grad(model(leaf), leaf, v.double())
    assert not bool((float64 == 1).all())  # float64 takes the wrong branch at some of them
    found = exact.gradient(model, x, v, engine="double_word")
    assert bool((found.to_torch() == 1).all())
    assert {a.verdict for a in found.audits} == {"confirmed"}
    # negative control: copies that decide for themselves go either way, and nothing can be said
    monkeypatch.setattr(float64_run, "beside", lambda *arguments: arguments[1])
    alone = exact.gradient(model, x, v, engine="double_word")
    assert "float64 cannot say" in {a.verdict for a in alone.audits}


def test_a_wrong_branch_against_a_clear_sign_is_contradicted(monkeypatch):
    name = "aten.threshold_backward.default"
    right = OPERATIONS[name]
    flipped = {1: lambda A, a, arguments: ~right.decisions[1](A, a, arguments)}
    monkeypatch.setitem(OPERATIONS, name, replace(right, decisions=flipped))
    with pytest.raises(ContradictedError, match=name):
        exact.gradient(tiny_mlp(), normal(2, 6), normal(2, 4), engine="ball")


def test_a_gradient_knows_its_audit():
    found = exact.gradient(tiny_mlp(), normal(3, 6), normal(3, 4), engine="ball")
    assert len(found.audits) == 3
    assert all(0 <= a.difference <= a.estimate < 2.0**-35 for a in found.audits)
    flat = exact.gradient(Of(lambda x: x * 0).eval(), normal(1, 6), normal(1, 6), engine="ball")
    assert math.isnan(flat.audits[0].difference)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["fashion_standard", *NETWORKS])
def test_networks_are_confirmed_on_cuda(name):
    model, x = subject(name)
    model, x = model.cuda(), x.cuda()
    v = normal(*model(x).shape, seed=4).cuda()
    found = exact.gradient(model, x, v, engine="double_word")
    assert {a.verdict for a in found.audits} == {"confirmed"}
