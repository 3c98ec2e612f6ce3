"""Random graphs over real, integer and boolean operations: all engines agree, and with PyTorch."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn
from torch.nn import functional as F

from fperr import exact
from fperr.errors import ReferenceNotCertifiedError
from fperr.exact import gradient_rungs
from tests.conftest import slow_except
from tests.makers.digits import digits_of

WIDTH, CLASSES = 4, 3
CHUNKS, SLOW_CHUNKS = 5, 10
EXAMPLES, SLOW_EXAMPLES = 15, 60  # of a chunk
SHARE = 0.9  # of the graphs that balls can judge, at least
BITS = 80
WIDE = mpmath.MPContext()
WIDE.prec = 400

REAL = {
    "add": lambda p: p.real() + p.real(),
    "sub": lambda p: p.real() - p.real(),
    "mul": lambda p: p.real() * p.real() / 2,
    "div": lambda p: p.real() / (1 + p.real().square()),
    "tanh": lambda p: p.real().tanh(),
    "sigmoid": lambda p: p.real().sigmoid(),
    "exp": lambda p: (-p.real().square()).exp(),
    "log": lambda p: (1 + p.real().square()).log(),
    "sqrt": lambda p: (1 + p.real().square()).sqrt(),
    "relu": lambda p: p.real().relu(),
    "gelu": lambda p: F.gelu(p.real()),
    "silu": lambda p: F.silu(p.real()),
    "leaky": lambda p: F.leaky_relu(p.real(), 0.2),
    "elu": lambda p: F.elu(p.real()),
    "hardtanh": lambda p: F.hardtanh(p.real()),
    "abs": lambda p: p.real().abs(),
    "maximum": lambda p: torch.maximum(p.real(), p.real()),
    "clamp": lambda p: p.real().clamp(-0.5, 0.75),
    "softmax": lambda p: p.real().softmax(1),
    "layer norm": lambda p: F.layer_norm(p.real(), (WIDTH,)),
    "centred": lambda p: (lambda a: a - a.mean(1, keepdim=True))(p.real()),
    "max": lambda p: p.real().max(1, keepdim=True)[0] + p.real(),
    "matrix": lambda p: p.real() @ p.matrix,
    "flip": lambda p: p.real().flip(1),
    "where": lambda p: torch.where(p.mask(), p.real(), p.real()),
    "masked": lambda p: p.real() * p.mask(),
    "filled": lambda p: p.real().masked_fill(p.mask(), 0.5),
    "of an integer": lambda p: p.integer() * 0.25 + p.real(),
    "by an integer": lambda p: p.real() / (p.integer().abs() + 1),
    "gather": lambda p: p.real().gather(1, p.integer() % WIDTH),
    "norm": lambda p: F.normalize(p.real(), dim=1),
    "sinc": lambda p: p.real().sinc(),
}
# drawn in the long test alone: each takes longer
MORE = {
    "groups": lambda p: p.real().scatter_reduce(1, p.integer() % WIDTH, p.real(), "amax"),
    "means of groups": lambda p: p.real().scatter_reduce(1, p.integer() % WIDTH, p.real(), "mean"),
    "distances": lambda p: F.huber_loss(p.real(), p.real(), reduction="none", delta=0.5),
    "deviation": lambda p: (lambda a: a / (1 + torch.std_mean(a, 1, keepdim=True)[0]))(p.real()),
    "product": lambda p: p.real().tanh().prod(1, keepdim=True) + p.real(),
    "waves": lambda p: p.real().sin() * p.real().cos(),
    "logarithms": lambda p: p.real().abs().log1p() + (1 + p.real().square()).log2(),
    "exponentials": lambda p: (-p.real().abs()).expm1() + torch.exp2(-p.real().square()),
    "error function": lambda p: p.real().erfc() - p.real().erf(),
    "mish, celu": lambda p: F.mish(p.real()) + F.celu(p.real()),
    "glu": lambda p: F.glu(torch.cat([p.real(), p.real()], 1)),
    "shrunk": lambda p: F.softshrink(p.real(), 0.25) + F.hardshrink(p.real(), 0.25),
    "threshold": lambda p: F.threshold(p.real(), 0.25, -1.0),
    "log sigmoid": lambda p: F.logsigmoid(p.real()),
    "sums of exponentials": lambda p: torch.logaddexp(
        p.real().logsumexp(1, keepdim=True), p.real()
    ),
    "arcs": lambda p: p.real().atan() + (p.real().tanh() / 2).asin() - p.real().tanh().acos(),
    "angle": lambda p: torch.atan2(p.real(), p.real() + 3),
    "inverse hyperbolic": lambda p: p.real().asinh() + (p.real().tanh() / 2).atanh(),
    "powers": lambda p: (1 + p.real().square()) ** 0.3 + p.real() ** 4 / 8,
    "powers by tensors": lambda p: (1 + p.real().square()).pow(p.real().tanh()),
    "variance": lambda p: p.real() / (1 + p.real().var(1, keepdim=True)),
    "norm of order three": lambda p: p.real() / (1 + p.real().norm(3, 1, keepdim=True)),
    "in order": lambda p: p.real().sort(1)[0],
    "largest two": lambda p: p.real().topk(2, 1)[0].repeat(1, 2),
    "least": lambda p: p.real().min(1, keepdim=True)[0] - p.real(),
    "so far": lambda p: p.real().cumsum(1) / 4,
    "products so far": lambda p: (1 + p.real().tanh() / 2).cumprod(1),
    "between": lambda p: torch.lerp(p.real(), p.real(), 0.3),
    "combined": lambda p: torch.addcmul(p.real(), p.real(), p.real(), value=0.25),
    "clipped": lambda p: torch.clamp(p.real(), min=p.real() - 1, max=p.real().abs()),
    "straight through": lambda p: (lambda a: a + (a.round() - a).detach())(4 * p.real()),
    "number in a slice": lambda p: written(p.real(), 0.5),
    "row in a slice": lambda p: written(p.real(), p.real()[:, 1:3]),
    "reflected": lambda p: F.pad(p.real(), (1, 1), mode="reflect")[:, ::2].repeat(1, 2)[:, :WIDTH],
    "largest alone": lambda p: p.real() * F.one_hot(p.real().argmax(1), WIDTH),
    "added": lambda p: p.real().index_add(1, torch.tensor([0, 2]), p.real()[:, :2]),
}


def written(a, what):
    """What is written into the middle of a copy."""
    a = a.clone()
    a[:, 1:3] = what
    return a


INTEGER = {
    "count": lambda p: p.mask().sum(1, keepdim=True).expand(-1, WIDTH),
    "of a mask": lambda p: p.mask().long() * 3 - 1,
    "sum": lambda p: p.integer() + p.integer(),
    "product": lambda p: (p.integer() * p.integer()).clamp(-50, 50),
    "remainder": lambda p: p.integer() % 5,
    "largest": lambda p: p.real().argmax(1, keepdim=True).expand(-1, WIDTH),
    "where the max is": lambda p: p.real().max(1, keepdim=True)[1] + p.integer(),
    "constant": lambda p: torch.arange(WIDTH) + p.integer() * 0,
    "cumulative": lambda p: p.integer().cumsum(1),
}
MASK = {
    "gt": lambda p: p.real() > p.real(),
    "le": lambda p: p.real() <= 0.25,
    "ne": lambda p: p.real() != p.real(),
    "integers": lambda p: p.integer() >= p.integer(),
    "integers equal": lambda p: p.integer() == p.integer(),
    "or": lambda p: p.mask() + p.mask(),
    "and": lambda p: p.mask() * p.mask(),
    "logical": lambda p: p.integer().logical_and(p.mask()),
    "xor": lambda p: p.mask() ^ p.mask(),
    "not": lambda p: ~p.mask(),
    "true": lambda p: p.integer().bool(),
}
MORE_INTEGER = {
    "least": lambda p: p.real().argmin(1, keepdim=True).expand(-1, WIDTH),
    "order": lambda p: p.real().argsort(1),
    "places of the largest": lambda p: p.real().topk(WIDTH, 1)[1],
}
STEPS = (
    [("real", name) for name in REAL]
    + [("integer", name) for name in INTEGER]
    + [("mask", name) for name in MASK]
)
MORE_STEPS = (
    STEPS + [("real", name) for name in MORE] + [("integer", name) for name in MORE_INTEGER]
)


class Pool:
    """The values so far, picked from by the numbers that were drawn."""

    def __init__(self, x, numbers, matrix):
        self.matrix = matrix
        self.values = {"real": [x, x.flip(1) / 3], "integer": [], "mask": [x > 0.1]}
        self.values["integer"] = [(x > -0.5).long() + (x > 0.5).long()]
        self.numbers, self.used = numbers, 0

    def _pick(self, kind):
        number = self.numbers[self.used % len(self.numbers)]
        self.used += 1
        values = self.values[kind]
        return values[-1 - number % len(values)]

    def real(self):
        return self._pick("real")

    def integer(self):
        return self._pick("integer")

    def mask(self):
        return self._pick("mask")


class Graph(nn.Module):
    """Some steps, and logits of the last real numbers."""

    def __init__(self, steps, numbers):
        super().__init__()
        self.steps, self.numbers = steps, numbers
        generator = torch.Generator().manual_seed(2)
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator).double() / 2)
        self.last = nn.Parameter(torch.randn(2 * WIDTH, CLASSES, generator=generator).double())

    def forward(self, x):
        pool = Pool(x, self.numbers, self.matrix)
        tables = {"real": REAL | MORE, "integer": INTEGER | MORE_INTEGER, "mask": MASK}
        for kind, name in self.steps:
            pool.values[kind].append(tables[kind][name](pool))
        return torch.cat(pool.values["real"][-2:], 1) @ self.last


def graphs_of(steps):
    return st.tuples(
        st.lists(st.sampled_from(steps), min_size=3, max_size=9),
        st.lists(st.integers(0, 6), min_size=8, max_size=20),
        st.integers(0, 10_000),
    )


def errors_to_balls(midpoint, balls):
    """The relative distance in norm of each sample, and 0 for 0/0."""
    errors = []
    for ours, theirs in zip(midpoint, balls, strict=True):
        wide = [[WIDE.mpf(n) for n in part.reshape(-1)] for part in (ours, theirs)]
        apart = WIDE.norm([a - b for a, b in zip(*wide, strict=True)])
        size = WIDE.norm(wide[1])
        errors.append(apart / size if size else (WIDE.mpf(0) if not apart else WIDE.inf))
    return errors


def check(steps, numbers, seed):
    """Whether all could be computed: then engines agree to what they claim, and with float64."""
    model = Graph(steps, numbers).eval()
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    v = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(seed + 1)).double()
    try:
        balls = exact.gradient(model, x, v, engine="ball", digits=76, largest_digits=603)
    except ReferenceNotCertifiedError:
        return False  # equal by no rule of arithmetic, or a gradient that is 0 by none
    assert -balls.log2_error >= 250
    pairs = exact.gradient(model, x, v, engine="double_word", digits=digits_of(BITS))
    found = exact.gradient(model, x, v, engine="mpmath", digits=digits_of(BITS))
    agreed = exact.gradient(model, x, v, engine="float64", digits=4)
    for other in (pairs, found, agreed):
        for claim, error in zip(
            other.log2_errors, errors_to_balls(other.midpoint, balls.midpoint), strict=True
        ):
            claimed = WIDE.mpf(2) ** claim if math.isfinite(claim) else 0
            # a logarithm near 100 in float64 is off by 2^-46, and mpmath's claim is a difference to
            # a run at 240 bits, which is off by 2^-120 of it
            claimed *= 1 + WIDE.mpf(2) ** -40
            assert error <= claimed + WIDE.mpf(2) ** -249
    # autograd, which knows nothing of captures, at samples where float64 can say something
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    ours = balls.to_torch()
    for sample, audit in enumerate(balls.audits):
        if audit.verdict == "confirmed" and not decides_near_a_tie(model, x[sample : sample + 1]):
            apart, size = (float(g.norm()) for g in (theirs[sample] - ours[sample], ours[sample]))
            assert apart <= (audit.estimate * size if size else 0.0)
    return True


def decides_near_a_tie(model, x):
    """Whether float64 itself may take another branch: its run at neighbours of x jumps."""
    gradients = []
    for factor in (1.0, 1 - 2.0**-50, 1 + 2.0**-50):
        leaf = (x * factor).requires_grad_()
        gradients.append(torch.autograd.grad(model(leaf).sum(), leaf)[0])
    size = gradients[0].norm()
    return any(bool((g - gradients[0]).norm() > 2.0**-20 * size) for g in gradients[1:])


def run_chunk(examples, steps=STEPS):
    judged = []

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(graphs_of(steps))
    def examine(graph):
        judged.append(check(*graph))

    examine()
    return judged


@pytest.mark.parametrize("chunk", slow_except(range(CHUNKS), (0, 1)))
def test_random_graphs(chunk):
    judged = run_chunk(EXAMPLES)
    assert sum(judged) >= least_judged(len(judged))


def least_judged(examples):
    """The count that is missed once in 10^9 chunks where 0.9 of all graphs are judged, as below."""
    return binom.ppf(1e-9, examples, SHARE)


def test_a_chunk_with_few_judged_graphs_is_noticed():
    assert 0.25 * EXAMPLES < least_judged(EXAMPLES) < 0.75 * EXAMPLES


@pytest.mark.slow
def test_many_random_graphs():
    chunks = [run_chunk(SLOW_EXAMPLES, MORE_STEPS) for _ in range(SLOW_CHUNKS)]
    judged = [result for chunk in chunks for result in chunk]
    assert len(judged) >= 500
    assert np.mean(judged) > SHARE


@pytest.mark.parametrize(
    ("engine", "off", "claim"), [("double_word", 70, 100), ("float64", 30, 40)]
)
def test_a_wrong_claim_is_noticed(monkeypatch, engine, off, claim):
    """Negative control: an engine that is off by more than it claims."""
    steps, numbers = [("real", "matrix"), ("real", "tanh"), ("real", "matrix")], [0, 1, 0, 2]
    assert check(steps, numbers, 1)
    runs = gradient_rungs._RUNS[engine]
    right = runs[-1][0]

    def boastful(asked):
        found = right(asked)
        moved = found.numbers * (1 + (WIDE.mpf(2) if engine == "double_word" else 2.0) ** -off)
        return replace(found, numbers=moved, log2_errors=[-float(claim)] * len(moved))

    monkeypatch.setitem(gradient_rungs._RUNS, engine, [(boastful, bits) for _, bits in runs])
    with pytest.raises(AssertionError):
        check(steps, numbers, 1)
