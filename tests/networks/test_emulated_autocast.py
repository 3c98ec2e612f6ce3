"""Emulated autocast against PyTorch's own, on tensors that claim to be a card's, and by bits."""

import re
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fperr
from fperr.emulated_kernels import autocast_lists, emulated
from fperr.emulated_kernels.autocast import autocast, autocast_dtype
from fperr.formats import BFLOAT16_AUTOCAST, FLOAT16_AUTOCAST, FLOAT16_CUDA, FLOAT64
from fperr.losses import Context
from fperr.networks.in_format import FormatNetwork
from tests.conftest import normal, seeded, tiny_mlp

LISTS = {
    "LOWER_PRECISION_FP": autocast_lists.HALF,
    "FP32": autocast_lists.FLOAT32,
    "FP32_SET_OPT_DTYPE": autocast_lists.FLOAT32_RESULT,
    "PROMOTE": autocast_lists.WIDEST,
}
OF_CUDNN = {"cudnn_convolution", "cudnn_convolution_transpose"}  # which no CPU calls
AUTOCAST = [FLOAT16_AUTOCAST, BFLOAT16_AUTOCAST]
Make = Callable[..., torch.Tensor]


@contextmanager
def autocast_of_torch(dtype):
    """PyTorch's own for CUDA, which `torch.autocast` refuses to switch on without a card."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def lists_of_installed_torch() -> dict[str, tuple[str, ...]]:
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    text = header.read_text().replace("\\\n", "\n")
    found = {}
    for name in LISTS:
        body = re.search(rf"#define AT_FORALL_{name}\(_\)(.*?)\n\n", text, re.DOTALL).group(1)
        entries = re.findall(r"_\((\w+)(?:, (\w+))?\)", body)
        found[name] = tuple(f"{op}.{overload}" if overload else op for op, overload in entries)
    return found


def test_the_lists_are_those_of_the_installed_torch():
    assert lists_of_installed_torch() == LISTS
    kernels = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
    }
    ours = {name for names in LISTS.values() for name in names}
    ours |= {*autocast_lists.FLOAT32_NORMS, *autocast_lists.REFUSED}
    assert kernels - OF_CUDNN == ours


# operation -> a call of it, with the maker of tensors of one dtype and device; `w` makes float32
CALLS: dict[str, Callable[[Make, Make], object]] = {
    "conv1d": lambda t, w: F.conv1d(t(1, 2, 8), w(3, 2, 3)),
    "conv2d": lambda t, w: F.conv2d(t(1, 2, 8, 8), w(3, 2, 3, 3), w(3)),
    "conv3d": lambda t, w: F.conv3d(t(1, 2, 4, 4, 4), w(3, 2, 3, 3, 3)),
    "conv_transpose2d": lambda t, w: F.conv_transpose2d(t(1, 2, 8, 8), w(2, 3, 3, 3)),
    "linear": lambda t, w: F.linear(t(4, 4), w(4, 4), w(4)),
    "matmul": lambda t, w: t(2, 3, 4) @ w(4, 4),
    "mm": lambda t, w: torch.mm(t(4, 4), w(4, 4)),
    "bmm": lambda t, w: torch.bmm(t(2, 4, 4), w(2, 4, 4)),
    "addmm": lambda t, w: torch.addmm(t(4, 4), w(4, 4), t(4, 4)),
    "baddbmm": lambda t, w: torch.baddbmm(t(2, 4, 4), w(2, 4, 4), w(2, 4, 4)),
    "einsum": lambda t, w: torch.einsum("ij,jk->ik", t(4, 4), w(4, 4)),
    "prelu": lambda t, w: F.prelu(t(4, 4), w(1)),
    "multi_dot": lambda t, w: torch.linalg.multi_dot([t(4, 4), w(4, 4), t(4, 4)]),
    "scaled_dot_product_attention": lambda t, w: F.scaled_dot_product_attention(
        t(1, 2, 4, 4), w(1, 2, 4, 4), w(1, 2, 4, 4)
    ),
    "lstm_cell": lambda t, w: torch.lstm_cell(
        t(2, 3), [w(2, 5), w(2, 5)], w(20, 3), w(20, 5), w(20), w(20)
    ),
    "exp": lambda t, w: t(4).exp(), "log": lambda t, w: t(4).log(),
    "rsqrt": lambda t, w: t(4).rsqrt(), "reciprocal": lambda t, w: t(4).reciprocal(),
    "pow": lambda t, w: t(4) ** 2, "pow of a number": lambda t, w: 2 ** t(4),
    "pow of tensors": lambda t, w: t(4) ** w(4), "softplus": lambda t, w: F.softplus(t(4)),
    "layer_norm": lambda t, w: F.layer_norm(t(4, 4), (4,), w(4), w(4)),
    "group_norm": lambda t, w: F.group_norm(t(2, 4, 3), 2, w(4), w(4)),
    "rms_norm": lambda t, w: F.rms_norm(t(4, 4), (4,), w(4)),
    "logsumexp": lambda t, w: t(4, 4).logsumexp(1),
    "softmax": lambda t, w: t(4, 4).softmax(1), "log_softmax": lambda t, w: t(4, 4).log_softmax(1),
    "softmax in a dtype": lambda t, w: t(4, 4).softmax(1, dtype=torch.float64),
    "sum": lambda t, w: t(4, 4).sum(), "sum by dim": lambda t, w: t(4, 4).sum(1),
    "prod": lambda t, w: t(4, 4).prod(1), "cumsum": lambda t, w: t(4, 4).cumsum(1),
    "norm": lambda t, w: t(4, 4).norm(), "norm by dim": lambda t, w: t(4, 4).norm(2, 1),
    "vector_norm": lambda t, w: torch.linalg.vector_norm(t(4, 4), dim=1),
    "cosine_similarity": lambda t, w: F.cosine_similarity(t(4, 4), w(4, 4)),
    "mse_loss": lambda t, w: F.mse_loss(t(4), w(4)),
    "cross_entropy": lambda t, w: F.cross_entropy(t(4, 4), t(4).long()),
    "cdist": lambda t, w: torch.cdist(t(4, 4), w(4, 4)),
    "interpolate": lambda t, w: F.interpolate(t(1, 2, 4, 4), scale_factor=2, mode="bilinear"),
    "interpolate, nearest": lambda t, w: F.interpolate(t(1, 2, 4, 4), scale_factor=2),
    "bilinear": lambda t, w: F.bilinear(t(2, 3), w(2, 4), w(5, 3, 4)),
    "cross": lambda t, w: torch.cross(t(4, 3), w(4, 3), dim=1),
    "addcmul": lambda t, w: torch.addcmul(t(4), w(4), t(4)),
    "dot": lambda t, w: t(4).dot(w(4)) if t(1).dtype == w(1).dtype else t(4).dot(t(4)),
    # on no list: PyTorch's promotion decides
    "add": lambda t, w: t(4) + w(4), "relu": lambda t, w: t(4).relu(),
    "mean": lambda t, w: t(4, 4).mean(1), "max_pool2d": lambda t, w: F.max_pool2d(t(1, 2, 4, 4), 2),
    "gelu": lambda t, w: F.gelu(t(4)), "sigmoid": lambda t, w: t(4).sigmoid(),
    "batch_norm": lambda t, w: F.batch_norm(t(2, 3, 4), w(3), w(3), w(3), w(3)),
    "avg_pool2d": lambda t, w: F.avg_pool2d(t(1, 2, 4, 4), 2),
    "clamp": lambda t, w: t(4).clamp(0, 1), "cat": lambda t, w: torch.cat([t(4), w(4)]),
}  # fmt: skip


def result_dtypes(call, device: str, dtype: torch.dtype) -> list[torch.dtype]:
    is_card = device == "cuda"
    with FakeTensorMode() if is_card else nullcontext():
        results = call(
            lambda *shape: torch.ones(shape, device=device, dtype=dtype),
            lambda *shape: torch.ones(shape, device=device),
        )
        tensors = [t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
        return [t.dtype for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("call", CALLS)
def test_operations_cast_as_torch_does_on_a_card(call, dtype):
    half = torch.float16
    with autocast_of_torch(half):
        expected = result_dtypes(CALLS[call], "cuda", dtype)
    with autocast(half):
        found = result_dtypes(CALLS[call], "cpu", dtype)
    assert found == expected


@pytest.mark.parametrize("call", ["softmax", "exp", "sum", "rsqrt", "norm"])
def test_the_cpus_autocast_would_be_noticed(call):
    half = torch.bfloat16
    with autocast_of_torch(half):
        expected = result_dtypes(CALLS[call], "cuda", half)
    with torch.autocast("cpu", dtype=half):
        assert result_dtypes(CALLS[call], "cpu", half) != expected


def test_what_autocast_refuses():
    half = torch.rand(3).half()
    with autocast(torch.float16):
        with pytest.raises(RuntimeError, match="use binary_cross_entropy_with_logits"):
            F.binary_cross_entropy(half.sigmoid(), torch.rand(3))
        assert F.binary_cross_entropy_with_logits(half, torch.rand(3)).dtype == torch.float32
        with pytest.raises(RuntimeError, match="Unexpected floating ScalarType"):
            torch.dot(half, half.bfloat16())
    assert autocast_dtype() is None  # after errors, too


def test_autocast_ends_with_its_block():
    x = torch.rand(2, 4)
    with autocast(torch.float16):
        with autocast(torch.bfloat16):
            assert (x @ x.T).dtype == autocast_dtype() == torch.bfloat16
        assert (x @ x.T).dtype == torch.float16
        assert (x.double() @ x.double().T).dtype == torch.float64  # which autocast leaves alone
    assert (x @ x.T).dtype == torch.float32


def conv_net() -> nn.Sequential:
    return seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)))


@pytest.mark.parametrize("fmt", AUTOCAST, ids=lambda fmt: fmt.name)
def test_gradients_are_those_of_casts_written_out(fmt):
    model, x, v = conv_net(), normal(3, 1, 8, 8), normal(3, 4, seed=1).to(fmt.dtype)
    conv, linear = model[0], model[3]
    leaf = x.clone().requires_grad_()
    with emulated(fmt):
        z = model(leaf)
        found = torch.autograd.grad(z, [leaf, conv.weight, linear.bias], v)
    assert z.dtype == fmt.dtype
    assert {g.dtype for g in found} == {torch.float32}

    def half(t):
        return t.to(fmt.dtype)

    leaf = x.clone().requires_grad_()
    halves = {torch.float16: FLOAT16_CUDA}.get(fmt.dtype, fperr.formats.BFLOAT16_CUDA)
    with emulated(halves):
        h = F.conv2d(half(leaf), half(conv.weight), half(conv.bias)).relu().flatten(1)
        expected_z = F.linear(h, half(linear.weight), half(linear.bias))
        expected = torch.autograd.grad(expected_z, [leaf, conv.weight, linear.bias], v)
    assert torch.equal(z, expected_z)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # planted: float32 in place of the casts
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(leaf), leaf, v.float())
    assert not torch.equal(found[0], plain)


def test_statistics_of_normalisations_stay_in_float32():
    """As on a card: in half formats their backward passes use them unrounded."""
    x = normal(4, 16).half().requires_grad_()
    weight = normal(16, seed=1).half()
    with emulated(FLOAT16_CUDA):
        y, mean, rstd = torch.native_layer_norm(x, (16,), weight, None, 1e-5)
        (found,) = torch.autograd.grad(y, x, y.detach())
    assert (y.dtype, mean.dtype, rstd.dtype) == (torch.float16, torch.float32, torch.float32)
    wide = x.detach().float().requires_grad_()
    expected_y = F.layer_norm(wide, (16,), weight.float())
    (expected,) = torch.autograd.grad(expected_y, wide, y.detach().float())
    assert torch.equal(y, expected_y.half())
    assert torch.equal(found, expected.half())


def test_an_operation_on_half_and_float32_gives_float32():
    x, bias = normal(4, 8).half(), normal(8, seed=1)
    with emulated(FLOAT16_AUTOCAST):
        assert torch.equal(x + bias, x.float() + bias)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return seeded(nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 5, 3))).eval()


@pytest.mark.parametrize("name", ["autocast-float16@cuda", "autocast-bfloat16@cuda"])
@pytest.mark.parametrize("build", [conv_net, transformer])
def test_measured_and_replayed(build, name):
    model = build()
    x = torch.rand(2, 1, 8, 8) if build is conv_net else torch.rand(2, 5, 16)
    y = torch.tensor([0, 1])
    frame = fperr.measure(
        model, x, y, losses=["ce"], formats=["float32", name], batch_size=1, progress=False
    ).frame.set_index("format")
    assert frame["value_audit"].eq("confirmed").all()
    u = fperr.formats.format_named(name).unit_roundoff
    assert u / 100 < frame["delta"][name].median() < 100 * u
    assert frame["delta"]["float32"].max() < u / 100


def test_losses_of_fperr_are_float32_under_emulated_autocast():
    z, y = normal(3, 4).half(), torch.tensor([0, 1, 2])
    with emulated(FLOAT16_AUTOCAST):
        assert fperr.losses.mifpe(z, y).dtype == torch.float32
    with emulated(FLOAT16_CUDA):
        assert fperr.losses.mifpe(z, y).dtype == torch.float16


@pytest.mark.parametrize("loss", ["stable_ce", "accurate_ce", "cw", "dlr", "unlimited_ce", "mae"])
def test_every_loss_has_a_gradient_under_emulated_autocast(loss):
    model, x, y = conv_net(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    network = FormatNetwork(model, FLOAT16_AUTOCAST, autocast=False)
    found = network.gradient(x, y, fperr.losses.loss_named(loss), Context(), mean=False)
    exact = FormatNetwork(model, FLOAT64, autocast=False).gradient(
        x, y, fperr.losses.loss_named(loss), Context(), mean=False
    )
    error = (found.gradient.double() - exact.gradient).norm() / exact.gradient.norm()
    assert 0 < float(error) < 100 * 2.0**-11


def test_a_float32_model_is_not_needed():
    """Weights are float32 under autocast, whatever the model's dtype is."""
    x, y = torch.rand(2, 6).half(), torch.tensor([0, 1])
    attacked = fperr.attack(
        tiny_mlp().half(), x, y, radius=0.1, steps=2, format="autocast-float16@cuda"
    )
    assert attacked.is_finite.all()


@pytest.mark.parametrize("name", ["float32@cuda", "autocast-float16@cuda"])
def test_a_recording_keeps_the_arithmetics_apart(name):
    """Exact gradients and other formats are computed in the middle of the attack's passes."""
    model, x, y = conv_net(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with fperr.record(model, x, y, formats=["float32", name], losses=["mifpe"]) as trace:
        fperr.attack(model, x, y, radius=0.1, steps=2, loss="mifpe", format=name)
    frame = trace.errors()
    own, others = frame[frame["is_own"]], frame[~frame["is_own"]]
    largest = others.groupby("format")["delta"].max()
    assert largest["float32"] < 2.0**-24 * 100 < largest[name]
    assert set(own["format"]) == {name}
    assert own["is_rerun_equal"].all()
    assert own["delta"].max() > 2.0**-24 * 100


class LogSoftmaxOperands(TorchDispatchMode):
    """Keeps the dtypes of what log-softmax is computed of."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._log_softmax.default:
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_pytorchs_cross_entropy_takes_its_log_softmax_in_the_half_format(device):
    """On a card, says PyTorch itself, and emulated; its result is float32."""
    is_card = device == "cuda"
    casts = autocast_of_torch if is_card else autocast
    with FakeTensorMode() if is_card else nullcontext():
        z = torch.ones(2, 3, device=device, dtype=torch.float16)
        y = torch.zeros(2, device=device, dtype=torch.long)
        with casts(torch.float16), LogSoftmaxOperands() as operands:
            assert F.cross_entropy(z, y).dtype == torch.float32
            z.log_softmax(1)
    by_itself = [torch.float16] if is_card else [torch.float32]  # a card's kernel casts inside
    assert operands.dtypes == [torch.float16, *by_itself]
