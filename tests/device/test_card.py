"""A card's own kernels: what the emulation and the bounds say of them."""

from functools import partial

import pytest
import torch
from torch import nn

from fperr.bounds.kernels import DOCUMENTED
from fperr.emulated_kernels import emulated, float8, float8_layers
from fperr.formats import BFLOAT16_AUTOCAST, FLOAT8_TENSORWISE, FLOAT16_AUTOCAST, FLOAT32
from fperr.kernel_switches import controlled
from tests.benchmarks import card_kernels
from tests.conftest import seeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROUNDED_ONCE = ["add", "sub", "mul", "div", "maximum", "relu", "sqrt", "sum", "mean"]


def test_operands_of_tf32_are_rounded_to_nearest():
    shares = card_kernels.operand_rounding()
    assert (shares["nearest_away"] == 1).all()
    assert (shares["truncated"] < 0.6).all()  # half of all operands are rounded up
    assert (shares["none"] < 0.01).all()


def test_half_operations_are_the_emulated_ones():
    """Those that IEEE 754 defines, and sums so short that their order is lost in the rounding."""
    frame = card_kernels.half_operations()
    exact = frame[frame["operation"].isin(ROUNDED_ONCE[:7])]
    assert len(exact) == 14
    assert (exact["equal"] == 1).all(), exact
    assert (frame["NaN on one side"] == 0).all()


def test_sums_of_products_stay_within_their_bound():
    """n units of 2^-24 of the sum of absolute terms; twice that where additions are truncated."""
    frame = card_kernels.accumulation()
    factor = frame["format"].map({"float32": 1}).fillna(2)
    assert (frame["largest"] <= factor * frame["n"] * (1 + 1e-3)).all(), frame


def test_logit_gradients_stay_within_their_bounds():
    assert (card_kernels.bounds()["ratio"] <= 1).all()
    # negative control: CUDA's expf is not within 1 ulp
    narrow = card_kernels.bounds(DOCUMENTED)
    assert narrow[narrow["format"] == "float32"]["ratio"].max() > 1


class OutputDtypes:
    """The dtypes of what each module returns, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.dtypes: dict[str, torch.dtype] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, *call: object) -> None:
        output = call[-1]
        if isinstance(output, torch.Tensor):
            self.dtypes[name] = output.dtype


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    parts = nn.Unflatten(1, (8, 16)), layer, nn.LayerNorm(16), nn.Flatten(), nn.Linear(128, 4)
    return seeded(nn.Sequential(*parts)).eval()


@pytest.mark.parametrize("fmt", [FLOAT16_AUTOCAST, BFLOAT16_AUTOCAST], ids=lambda fmt: fmt.name)
def test_autocast_casts_as_emulated(fmt):
    """And how far the gradients are apart is printed."""
    model, x = encoder(), card_kernels.normal(4, 128)
    found = OutputDtypes(model)
    leaf = x.clone().requires_grad_()
    with emulated(fmt):
        z = model(leaf)
    (ours,) = torch.autograd.grad(z.float().sum(), leaf)
    there = encoder().to(card_kernels.CUDA)
    expected = OutputDtypes(there)
    leaf = x.to(card_kernels.CUDA).requires_grad_()
    with torch.autocast("cuda", dtype=fmt.dtype), controlled(FLOAT32):
        z = there(leaf)
    (theirs,) = torch.autograd.grad(z.float().sum(), leaf)
    assert found.dtypes == expected.dtypes
    assert ours.dtype == theirs.dtype
    apart = (card_kernels.directions(ours) - card_kernels.directions(theirs)).norm(dim=1)
    print(f"{fmt.name}: card and emulation apart by {apart.tolist()}")


def test_float8_products_are_those_of_the_cards_kernel():
    """Partial sums keep 14 bits at least, truncated; and each side rounds to bfloat16 once."""
    layer = seeded(nn.Linear(64, 32, bias=False)).bfloat16().requires_grad_(False)
    x = card_kernels.normal(16, 64).bfloat16()
    with emulated(FLOAT8_TENSORWISE, layers=float8_layers(layer)):
        ours = layer(x)
    (a, a_scale), (b, b_scale) = (
        float8.scaled_to_float8(t.to(card_kernels.CUDA), float8.FORWARD) for t in (x, layer.weight)
    )
    theirs = torch._scaled_mm(
        a, b.t(), scale_a=a_scale.reciprocal(), scale_b=b_scale.reciprocal(),
        out_dtype=torch.bfloat16,
    ).cpu()  # fmt: skip
    size = (a.double().abs() @ b.double().abs().t()).cpu() / float(a_scale * b_scale)
    allowed = 64 * 2.0**-13 * size + 2 * 2.0**-8 * theirs.double().abs()
    apart = (ours.double() - theirs.double()).abs()
    print(f"float8: {float((apart == 0).double().mean()):.3f} of the products are equal")
    assert bool((apart <= allowed).all())
