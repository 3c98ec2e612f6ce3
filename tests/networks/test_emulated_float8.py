"""Linear layers in float8: casts by definition, products beside PyTorch's own, and refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import fperr
from fperr.emulated_kernels import emulated, float8, float8_layers
from fperr.errors import CaptureAuditError, ModelError
from fperr.formats import FLOAT8_TENSORWISE
from fperr.networks.in_format import FormatNetwork
from fperr.reasons import UnmeasuredWarning
from tests.conftest import normal, seeded, tiny_mlp

NAME = "float8@tensorwise"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# significand bits, exponent of the smallest normal number, largest number: OCP's OFP8, table 1
DEFINITIONS = {E4M3: (4, -6, 448.0), E5M2: (3, -14, 57344.0)}
MILLION = 1_000_000


def mlp() -> nn.Module:
    layers = nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 5)
    return seeded(nn.Sequential(*layers)).eval()


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return seeded(nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 5, 3))).eval()


def saturated(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Rounded to nearest, ties to even, in float64: exact, as it has enough bits."""
    bits, emin, largest = DEFINITIONS[dtype]
    clamped = np.clip(numbers.astype(np.float64), -largest, largest)
    exponents = np.maximum(np.frexp(clamped)[1] - 1, emin) - (bits - 1)
    return np.copysign(np.ldexp(np.rint(np.ldexp(clamped, -exponents)), exponents), clamped)


def numbers_and_ties(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Float32 numbers around a format's range: random ones, and halfway between its numbers."""
    random = np.random.default_rng(0)
    bits, emin, largest = DEFINITIONS[dtype]
    spread = np.exp2(random.uniform(emin - bits - 3, np.log2(largest) + 1, count // 2))
    places = np.exp2(random.integers(emin, int(np.log2(largest)), count // 2).astype(float))
    ties = places * (random.integers(0, 2**bits, count // 2) + 0.5) * 2.0 ** (1 - bits)
    signs = random.choice([-1.0, 1.0], 2 * (count // 2))
    return torch.from_numpy((signs * np.concatenate([spread, ties])).astype(np.float32))


@pytest.mark.parametrize("dtype", DEFINITIONS)
def test_a_million_casts_are_those_of_the_definition(dtype):
    numbers = numbers_and_ties(MILLION, dtype)
    ends = torch.tensor([0.0, -0.0, 1e-30, -1e-30, DEFINITIONS[dtype][2], 1e30])
    # the largest of all makes the scale 1
    numbers = torch.cat([numbers, ends]).clamp(-DEFINITIONS[dtype][2], DEFINITIONS[dtype][2])
    found, scale = float8.scaled_to_float8(numbers, dtype)
    assert float(scale) == 1.0
    expected = saturated(numbers.numpy(), dtype)
    assert np.array_equal(found.double().numpy(), expected)
    assert np.array_equal(np.signbit(found.double().numpy()), np.signbit(expected))
    # planted: truncation, the other format, and a second rounding on the way
    truncated = np.trunc(numbers.double().numpy() / 0.25) * 0.25
    other = E5M2 if dtype == E4M3 else E4M3
    for fault in (truncated, saturated(numbers.numpy(), other)):
        assert not np.array_equal(found.double().numpy(), fault)
    twice = saturated(numbers.half().double().numpy(), dtype)
    assert not np.array_equal(found.double().numpy(), twice)


def test_constants_are_torchs_own():
    for dtype, (bits, emin, largest) in DEFINITIONS.items():
        info = torch.finfo(dtype)
        assert (info.eps, info.smallest_normal, info.max) == (2.0 ** (1 - bits), 2.0**emin, largest)
    assert FLOAT8_TENSORWISE.precision == DEFINITIONS[E4M3][0]


def quantised(numbers: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """As torchao's recipe is published, with the definition's rounding."""
    scale = np.float32(torch.finfo(dtype).max / np.float64(numbers.abs().max()))
    cast = saturated(numbers.float().numpy() * scale, dtype)
    return torch.from_numpy(cast).to(dtype), torch.tensor(1.0) / torch.tensor(scale)


def scaled_product(a: torch.Tensor, b: torch.Tensor, dtypes) -> torch.Tensor:
    """PyTorch's own kernel for scaled products."""
    (a8, a_scale), (b8, b_scale) = (quantised(t, d) for t, d in zip((a, b), dtypes, strict=True))
    column_major = b8.t().contiguous().t()
    return torch._scaled_mm(
        a8, column_major, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16
    )


def layer_in_float8(layer: nn.Linear, x: torch.Tensor, g: torch.Tensor):
    leaf = x.clone().requires_grad_()
    with emulated(FLOAT8_TENSORWISE, layers=float8_layers(layer)):
        y = layer(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, g)
    return y.detach(), gradient


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 48)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layers_multiply_as_pytorchs_scaled_kernel(size, has_bias):
    """Within a place of bfloat16: the order of a float32 sum may move it across a tie."""
    inputs, outputs = size
    layer = seeded(nn.Linear(inputs, outputs, bias=has_bias)).bfloat16().requires_grad_(False)
    x, g = normal(8, inputs).bfloat16(), normal(8, outputs, seed=1).bfloat16()
    y, gradient = layer_in_float8(layer, x, g)
    weight = layer.weight.detach()
    expected = scaled_product(x, weight.t(), (E4M3, E4M3))
    expected_y = expected + layer.bias if has_bias else expected
    expected_gradient = scaled_product(g, weight, (E5M2, E4M3))
    u = 2.0**-8
    for found, wanted, size in (
        (y, expected_y, expected),
        (gradient, expected_gradient, expected_gradient),
    ):
        apart = (found.double() - wanted.double()).abs()
        assert bool((apart <= 2 * u * size.double().abs().clamp_min(wanted.double().abs())).all())
        assert float((apart == 0).double().mean()) > 0.9
    # planted: the two formats swapped, and products in bfloat16
    swapped = scaled_product(g, weight, (E4M3, E5M2))
    assert float((swapped == gradient).double().mean()) < 0.5
    plain = torch.nn.functional.linear(x, weight, layer.bias)
    assert float((plain == y).double().mean()) < 0.5


def test_scales_are_of_whole_tensors():
    layer = seeded(nn.Linear(16, 16)).bfloat16().requires_grad_(False)
    x, g = normal(2, 16).bfloat16(), normal(2, 16, seed=1).bfloat16()
    alone, _ = layer_in_float8(layer, x[:1], g[:1])
    beside, _ = layer_in_float8(layer, torch.cat([x[:1], 1000 * x[1:]]), g)
    assert not torch.equal(alone, beside[:1])
    y, gradient = layer_in_float8(layer, torch.zeros_like(x), torch.zeros_like(g))
    assert torch.equal(y, layer.bias.expand_as(y))  # a tensor of zeros has a scale, too
    assert not gradient.any()


def test_which_layers_run_in_float8():
    model = transformer()
    layers = float8_layers(model)
    assert layers.names == ("0.linear1", "0.linear2")
    assert layers.others == ("0.self_attn.out_proj (16 to 16)", "2 (80 to 3)")
    weights = model[0].linear1.weight, model[0].linear2.weight
    assert all(a is b for a, b in zip(layers.weights, weights, strict=True))


def test_a_network_without_such_layers_is_refused():
    remedy = "use 'bfloat16@cuda'"
    with pytest.raises(ModelError, match=f"would change no layer: .*got 0 .*{remedy}"):
        float8_layers(tiny_mlp())
    with pytest.raises(ModelError, match="got no linear layer"):
        float8_layers(nn.Conv2d(1, 1, 3))
    model, x = tiny_mlp(), torch.rand(2, 6)
    y = torch.tensor([0, 1])
    with pytest.raises(ModelError, match="would change no layer"):
        fperr.attack(model, x, y, radius=0.1, steps=1, format=NAME)
    with pytest.warns(UnmeasuredWarning, match="would change no layer"):
        frame = fperr.measure(
            model, x, y, losses=["ce"], formats=["bfloat16@cuda", NAME], progress=False
        ).frame.set_index("format")
    assert frame["reason"][NAME].str.contains("would change no layer").all()
    assert frame["delta"]["bfloat16@cuda"].notna().all()  # the remedy


def test_a_tensor_with_infinities_has_no_scale():
    numbers = torch.tensor([1.0, float("inf")])
    for broken in (numbers, numbers * float("nan")):
        with pytest.raises(ModelError, match="holds infinities or NaN, got a largest magnitude of"):
            float8.scaled_to_float8(broken, E4M3)
    assert float8.scaled_to_float8(numbers[:1], E4M3)[0].float().isfinite().all()


def test_a_sample_without_a_scale_costs_its_own_rows():
    """Activations that overflow bfloat16 for one of two samples."""
    model = seeded(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3)))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(16))
        model[0].bias.zero_()
        model[1].weight.mul_(2.0**-120)
    model = nn.Sequential(Amplified(), *model).eval()
    x = torch.stack([torch.full((16,), 0.5), torch.full((16,), 1.0)])
    y = torch.tensor([0, 1])
    with pytest.warns(UnmeasuredWarning, match="holds infinities or NaN"):
        frame = fperr.measure(
            model, x, y, losses=["ce"], formats=[NAME], batch_size=1, progress=False
        ).frame
    assert frame["delta"].notna().tolist() == [True, False]
    assert "holds infinities or NaN" in frame["reason"][1]


class Amplified(nn.Module):
    def forward(self, x):
        return torch.where(x > 0.75, x * 2.0**127 * 1.9999, x)  # infinite in bfloat16 alone


@pytest.mark.parametrize("build", [mlp, transformer])
def test_measured_and_replayed(build):
    model, x = build(), torch.rand(2, 32) if build is mlp else torch.rand(2, 5, 16)
    y = torch.tensor([0, 1])
    report = fperr.measure(
        model, x, y, losses=["mifpe"], formats=["float32", "bfloat16@cuda", NAME], batch_size=1,
        progress=False,
    )  # fmt: skip
    frame = report.frame
    assert frame["value_audit"].eq("confirmed").all()
    delta = frame.groupby("format")["delta"].median()
    assert delta["float32"] < delta["bfloat16@cuda"] / 100
    assert delta["bfloat16@cuda"] < delta[NAME] < 1
    (details,) = report.provenance.values()
    shown = details["precision_switches"][NAME]
    assert shown["layers in float8"] == ", ".join(float8_layers(model).names)
    assert shown["linear layers in bfloat16"] == ", ".join(float8_layers(model).others)


def test_batches_are_run_one_by_one():
    model, x, y = mlp(), torch.rand(2, 32), torch.tensor([0, 1])
    options = {"losses": ["ce"], "formats": [NAME], "progress": False}
    with pytest.raises(CaptureAuditError, match=r"scale depends on the other .* use batch_size=1"):
        fperr.measure(model, x, y, batch_size=2, **options)
    expected = fperr.measure(model, x, y, batch_size=1, **options).frame
    with pytest.warns(UserWarning, match="the samples are run one by one"):
        found = fperr.measure(model, x, y, **options).frame
    assert found["delta"].tolist() == expected["delta"].tolist()


def test_doors():
    model, x, y = mlp(), torch.rand(2, 32), torch.tensor([0, 1])
    assert len(fperr.trace_layers(model, x[:1], format=NAME, progress=False).frame)
    result = fperr.attribute(
        model, x, y, radius=0.1, steps=2, starts=1, format=NAME, exact="all", progress=False
    )
    assert len(result.frame) == 2
    with fperr.record(model, x, y, formats=[NAME], losses=["mifpe"]) as trace:
        fperr.attack(model, x, y, radius=0.1, steps=1, format="float32")
    recorded = trace.errors()
    alone = FormatNetwork(model, FLOAT8_TENSORWISE, autocast=False)
    assert alone.couples_samples
    measured = fperr.measure(
        model, x, y, losses=["mifpe"], formats=[NAME], batch_size=1, progress=False
    ).frame
    first = recorded[(recorded["format"] == NAME) & (recorded["step"] == 0)]
    assert first["delta"].tolist() == pytest.approx(measured["delta"].tolist(), rel=1e-9)
