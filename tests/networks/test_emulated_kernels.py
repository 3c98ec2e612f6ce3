"""Emulated kernels against independent definitions, bit by bit, and planted faults."""

import numpy as np
import pytest
import torch
from torch import nn

import fperr
from fperr import bounds, data, zoo
from fperr.emulated_kernels import emulated, rounded_to_bits
from fperr.formats import (
    BFLOAT16_CUDA,
    FLOAT16_CUDA,
    FLOAT32,
    TF32_CUDA,
    Emulation,
    Format,
)
from tests.conftest import normal, seeded, tiny_mlp

RULES = ("nearest_away", "nearest_even", "truncated")
MILLION = 1_000_000
KEPT = 11


def patterns(count: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers of all sizes: random bits, ties, and the ends of the range."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    half = 1 << (23 - KEPT)
    bits[: count // 4] = (bits[: count // 4] & np.uint32(~(2 * half - 1) & 0xFFFFFFFF)) | half
    ends = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4028235e38, np.inf, -np.inf, np.nan])
    return np.concatenate([bits.view(np.float32), ends.astype(np.float32)])


def rounded_by_definition(numbers: np.ndarray, rule: str) -> np.ndarray:
    """Multiples of the last place of 11 significand bits, at least 2^-136, in float64."""
    with np.errstate(all="ignore"):
        wide = numbers.astype(np.float64)
        exponents = np.maximum(np.frexp(wide)[1] - KEPT, -136)
        units = np.ldexp(wide, -exponents)
        whole = {
            "nearest_away": lambda: np.copysign(np.floor(np.abs(units) + 0.5), units),
            "nearest_even": lambda: np.rint(units),
            "truncated": lambda: np.trunc(units),
        }[rule]()
        result = np.copysign(np.ldexp(whole, exponents), wide)
        # beyond float32's largest number there is infinity
        result = np.where(np.abs(result) >= 2.0**128, np.copysign(np.inf, wide), result)
        return np.where(np.isfinite(wide), result, wide).astype(np.float32)


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """The number of entries with other bits, NaN apart."""
    same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return int((~same).sum())


@pytest.mark.parametrize("rule", RULES)
def test_operands_are_rounded_as_defined(rule):
    numbers = patterns(MILLION)
    found = rounded_to_bits(torch.from_numpy(numbers), KEPT, rule).numpy()
    assert differing(found, rounded_by_definition(numbers, rule)) == 0


@pytest.mark.parametrize("rule", RULES)
def test_another_rule_and_other_bits_are_noticed(rule):
    numbers = patterns(10_000)
    expected = rounded_by_definition(numbers, rule)
    for other in set(RULES) - {rule}:
        assert differing(rounded_to_bits(torch.from_numpy(numbers), KEPT, other).numpy(), expected)
    fewer = rounded_to_bits(torch.from_numpy(numbers), KEPT - 1, rule).numpy()
    assert differing(fewer, expected)
    assert differing(numbers, expected)  # no rounding at all


OPERATIONS = {
    "add": (lambda a, b: a + b, np.add),
    "sub": (lambda a, b: a - b, np.subtract),
    "mul": (lambda a, b: a * b, np.multiply),
    "div": (lambda a, b: a / b, np.divide),
    "max": (torch.maximum, np.maximum),
    "sqrt": (lambda a, _: a.abs().sqrt(), lambda a, _: np.sqrt(np.abs(a))),
    "relu": (lambda a, _: a.relu(), lambda a, _: np.where(a > 0, a, 0)),
}


def halves(fmt: Format, seed: int) -> torch.Tensor:
    """Numbers of a half format: all bit patterns that are finite, in a random order."""
    bits = np.random.default_rng(seed).permutation(2**16).astype(np.uint16)
    numbers = torch.from_numpy(bits.view(np.int16)).view(fmt.dtype)
    return torch.where(numbers.isfinite(), numbers, torch.ones((), dtype=fmt.dtype))


@pytest.mark.parametrize("fmt", [FLOAT16_CUDA, BFLOAT16_CUDA], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_halves_compute_in_float32_and_round_once(operation, fmt):
    ours, numpys = OPERATIONS[operation]
    for seed in range(16):  # 16 x 65,536 pairs
        a, b = halves(fmt, 2 * seed), halves(fmt, 2 * seed + 1)
        with emulated(fmt):
            found = ours(a, b)
        assert found.dtype == fmt.dtype
        with np.errstate(all="ignore"):
            wide = numpys(a.float().numpy(), b.float().numpy())
        expected = torch.from_numpy(wide).to(fmt.dtype)
        # either zero is the largest of the two, and NaN has many patterns
        same_bits = found.view(torch.int16) == expected.view(torch.int16)
        same = same_bits | ((found == 0) & (expected == 0) & (operation in ("max", "relu")))
        assert bool((same | (found.isnan() & expected.isnan())).all())


def test_a_product_of_halves_rounds_its_sum_once():
    """The definition in float32; the CPU's own float16 may round between."""
    a, b = (normal(32, 512, seed=s).half() for s in (0, 1))
    with emulated(FLOAT16_CUDA):
        found = a @ b.T
    assert torch.equal(found, (a.float() @ b.float().T).half())
    summed = torch.zeros(32, 32, dtype=torch.float16)
    for k in range(512):  # a rounding too many at every addition
        summed = summed + a[:, k, None] * b[None, :, k]
    assert not torch.equal(found, summed)


@pytest.mark.parametrize("rule", RULES)
def test_convolutions_are_cut_forward_and_backward(rule):
    fmt = Format("ours", torch.float32, 24, -126, 127, 63, Emulation(KEPT, operand_rounding=rule))
    x, weight, g = normal(2, 3, 8, 8), normal(4, 3, 3, 3, seed=1), normal(2, 4, 6, 6, seed=2)
    leaf = x.clone().requires_grad_()

    def cut(t):
        return rounded_to_bits(t, KEPT, rule)

    with emulated(fmt):
        z = nn.functional.conv2d(leaf, weight)
        (gradient,) = torch.autograd.grad(z, leaf, g)
    assert torch.equal(z, nn.functional.conv2d(cut(x), cut(weight)))
    expected = cut(x).requires_grad_()
    (backward,) = torch.autograd.grad(nn.functional.conv2d(expected, cut(weight)), expected, cut(g))
    assert torch.equal(gradient, backward)
    # planted: a backward pass without rounding, and a forward one
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(nn.functional.conv2d(leaf, weight), leaf, g)
    assert not torch.equal(gradient, plain)
    assert not torch.equal(z, nn.functional.conv2d(x, weight))


def test_the_error_of_a_product_stays_within_its_bound():
    """Operands of 11 bits, sums in float32 in any order: gamma_n of the sum of absolute terms."""
    n, u = 256, 2.0**-24
    a, b = normal(64, n), normal(n, 64, seed=1)
    with emulated(TF32_CUDA):
        found = (a @ b).double()
    cut_a, cut_b = (rounded_to_bits(t, KEPT, "nearest_away").double() for t in (a, b))
    allowed = n * u / (1 - n * u) * (cut_a.abs() @ cut_b.abs())
    assert bool(((found - cut_a @ cut_b).abs() <= allowed).all())
    assert bool(((found - a.double() @ b.double()).abs() > allowed).any())  # operands not cut


def test_float32_on_a_gpu_differs_by_its_convolutions_alone():
    mlp, x = tiny_mlp(), torch.rand(4, 6)
    y = torch.zeros(4, dtype=torch.long)
    names = ["float32", "float32@cuda", "tf32@cuda"]
    frame = fperr.measure(mlp, x, y, losses=["ce"], formats=names, progress=False).frame
    errors = {name: frame[frame["format"] == name]["delta"].tolist() for name in names}
    assert errors["float32"] == errors["float32@cuda"]
    assert min(errors["tf32@cuda"]) > 10 * max(errors["float32"])
    images = data.fashion_mnist_1000().first(4)
    frame = fperr.measure(
        zoo.load("fashion_adversarial"), images.x, images.y, losses=["mifpe"],
        formats=["float32", "float32@cuda", "float16", "float16@cuda"], progress=False,
    ).frame  # fmt: skip
    delta = frame.groupby("format")["delta"].median()
    # operands of 11 bits: between a hundredth and a hundred of their roundings; float32 far below
    assert 2.0**-11 / 100 < delta["float32@cuda"] < 100 * 2.0**-11
    assert delta["float32"] < delta["float32@cuda"] / 100
    assert frame["value_audit"].eq("confirmed").all()


def test_a_network_without_emulation_is_left_alone():
    x = torch.randn(3, 3)
    with emulated(FLOAT32):
        assert torch.equal(x @ x, x.clone() @ x)


@pytest.mark.parametrize("name", ["float32@cuda", "float16@cuda", "autocast-bfloat16@cuda"])
def test_doors_take_emulated_formats(name):
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)))
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    assert len(fperr.trace_layers(model, x[:1], format=name, progress=False).frame)
    result = fperr.attribute(
        model, x, y, radius=0.1, steps=2, starts=1, format=name, exact="all", progress=False
    )
    assert result.frame["is_judged"].all()
    with fperr.record(model, x, y, formats=[name], losses=["mifpe"]) as trace:
        fperr.attack(model, x, y, radius=0.1, steps=1, format=name)
    assert name in set(trace.errors()["format"])


def test_what_runs_a_devices_own_kernels_refuses_emulated_names():
    """Their numbers would bear the name of an arithmetic that did not make them."""
    z, y = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    for door in (
        lambda: bounds.check(z, y, "float16@cuda"),
        lambda: bounds.logit_gradient(z, y, c=1.0, format="float16@cuda"),
    ):
        with pytest.raises(ValueError, match=r"got 'float16@cuda': .* give 'float16', and kernel="):
            door()
    assert len(bounds.check(z, y, "float16", kernel="cuda")) == 1  # the remedy
    model, x = tiny_mlp(), torch.rand(2, 6)
    with pytest.raises(ValueError, match="take 'float16' or 'bfloat16'"):
        fperr.measure(model, x, formats=["float16@cuda"], autocast=True)
    assert len(fperr.measure(model, x, formats=["float16"], losses=["ce"], autocast=True).frame)


def test_unknown_names_list_the_emulated_ones():
    with pytest.raises(ValueError, match=r"unknown format 'float32@tpu': .*float32@cuda"):
        fperr.measure(tiny_mlp(), torch.rand(2, 6), formats=["float32@tpu"])
