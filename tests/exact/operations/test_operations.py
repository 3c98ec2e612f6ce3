"""The meaning of each operation, against float64 runs that are free of rounding."""

import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fperr import exact
from fperr.errors import ContradictedError, UnsupportedOperationError
from fperr.exact.interpreter import Interpreter
from fperr.exact.operations import OPERATIONS
from tests.conftest import integer_inputs, integers, normal, seeded


class Call(nn.Module):
    """A network made of one function, with an optional convolution before it."""

    def __init__(self, function, channels=0):
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3, bias=False) if channels else nn.Identity()
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x)).flatten(1)


class Split(nn.Module):
    """A layer of two halves of the input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(*x.chunk(2, 1))


class Residual(nn.Module):
    """Option A of the first ResNets: stride by slicing, channels by padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return F.relu_(self.conv(x) + shortcut).flatten(1)


def assigned(x):
    """Assignments to rows, to every other column, and in place."""
    y = torch.zeros_like(x)
    y[:, :, 1:3] = x[:, :, 2:4] * 2
    y[:, 0] = x[:, 1] - 1
    y[..., ::2] += 3 * x[..., 1::2]
    y[:, :, 1].mul_(x[:, :, 0])
    return y


def filled(x):
    """Numbers where a mask is true, and on a diagonal."""
    y = x * 2
    y[x > 1] = 3
    y.diagonal(0, 2, 3).copy_(x[:, :, 0, :7])
    return y


def distinct(x):
    """Numbers without ties: PyTorch keeps no order of equal ones."""
    return 64 * x + torch.arange(x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])


def bordered(x):
    """Numbers written into slices."""
    y = x.clone()
    y[:, :, 0] = 3
    y[..., -1] = 0.5
    return y * x


def with_own_kernels(x, **options):
    """A convolution whose kernel and bias are made of the sample: groups for each."""
    kernels = x[:, :, :3, :4].reshape(-1, 1, 3, 2) + 1
    bias = x[:, :, 5, :2].flatten() * 2
    groups = 2 * len(x)
    y = F.conv2d(x.reshape(1, groups, 7, 8), kernels, bias, groups=groups, **options)
    return y.reshape(len(x), -1)


def with_own_kernels_transposed(x, **options):
    kernels = x[:, :, :3, :4].reshape(-1, 2, 3, 2) + 1
    bias = x[:, 0, 5, :2].flatten() * 2
    y = F.conv_transpose2d(x.reshape(1, -1, 7, 8), kernels, bias, groups=len(x), **options)
    return y.reshape(len(x), -1)


def quantised_by_channel(x):
    scales, zeros = torch.tensor([0.5, 2.0]), torch.tensor([1, 0], dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scales, zeros, 1, -2, 5) * 2


def powers_of_numbers(x):
    """Of positive and negative numbers, and of 0; exponents that no graph knows."""
    exponents = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=x.dtype).repeat(2)
    return torch.pow(x, exponents) + x


def chosen_alone(x):
    """The largest entry of each row by one_hot, the least by its position."""
    last = F.one_hot(distinct(x).argmax(3), 8).to(x.dtype) * x
    least = torch.argmin(input=distinct(x), dim=3, keepdim=True)
    return last + x.gather(3, least) * distinct(x).argmin(axis=2)[:, :, None]


def resized(x, size=(14, 16), **options):
    return F.interpolate(x, size=size, **options)


def by_group(x, reduce, ranked=distinct, **options):
    """Columns reduced over the column that the index names; some names stand for none."""
    index = torch.tensor([0, 2, 2, 3, 3, 3, 1, 0])[: x.shape[3]].expand_as(x)
    return x.flip(3).scatter_reduce(3, index, ranked(x), reduce, **options) * x


def by_data(x, reduce):
    """Groups that the data choose."""
    return (x * 3).scatter_reduce(3, distinct(x).argsort(3) // 2, distinct(x), reduce) * x


# 2x7x8 inputs; every number that occurs is an integer or a dyadic fraction of few bits, so float64
# makes no rounding error and the exact engine must give the same numbers
EXACT = {
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(112, 5)),
    "sums of groups": Call(lambda x: by_group(x, "sum")),
    "sums of groups alone": Call(lambda x: by_group(x, "sum", include_self=False)),
    "largest of groups": Call(lambda x: by_group(x[:, :1, :3], "amax")),
    "least of groups alone": Call(lambda x: by_group(x[:, :1, :3], "amin", include_self=False)),
    "sums of chosen groups": Call(lambda x: by_data(x, "sum")),
    "largest of chosen groups": Call(lambda x: by_data(x[:, :1, :3], "amax")),
    "least and largest": Call(lambda x: torch.mul(*distinct(x).aminmax(dim=3, keepdim=True)) * x),
    "squared distances": Call(lambda x: F.mse_loss(x, x.flip(1), reduction="none")),
    "sum of squared distances": Call(
        lambda x: (
            torch.stack([F.mse_loss(a, a.flip(0), reduction="sum") for a in x])[:, None]
            * x[:, 0, 0]
        )
    ),
    "Huber": Call(lambda x: F.huber_loss(x, x.flip(1), reduction="none", delta=2.0)),
    "smooth L1": Call(lambda x: F.smooth_l1_loss(x, x.flip(2), reduction="none", beta=4.0)),
    "a matrix times a vector": Call(lambda x: torch.stack([torch.mv(a[0], a[1, 0]) for a in x])),
    "an outer product added": Call(
        lambda x: torch.stack([torch.addr(a[0], a[1, :, 0], a[1, 0], alpha=2) for a in x])
    ),
    "trace": Call(
        lambda x: torch.stack([torch.trace(a[0] @ a[1].mT) for a in x])[:, None] * x[:, 0, 0]
    ),
    "bilinear layer": nn.Sequential(nn.Flatten(), Split(nn.Bilinear(56, 56, 3))),
    "linear without bias": nn.Sequential(nn.Flatten(), nn.Linear(112, 5, bias=False)),
    "convolution": nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()),
    "stride, padding": nn.Sequential(nn.Conv2d(2, 3, (3, 2), (2, 3), (1, 0)), nn.Flatten()),
    "dilation": nn.Sequential(nn.Conv2d(2, 3, 2, padding=2, dilation=(2, 3)), nn.Flatten()),
    "groups": nn.Sequential(nn.Conv2d(2, 6, 3, groups=2, padding=1), nn.Flatten()),
    "padding same": nn.Sequential(nn.Conv2d(2, 3, (3, 5), padding="same"), nn.Flatten()),
    "relu": nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten()),
    "relu in place": nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten()),
    "max pool": Call(lambda x: F.max_pool2d(x, 2), 3),
    "max pool, overlapping": Call(lambda x: F.max_pool2d(x, 3, 2, 1), 3),
    "max pool, dilated": Call(lambda x: F.max_pool2d(x, 2, 1, 0, 2), 3),
    "max pool, ceil": Call(lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), 3),
    "max pool, raw": Call(lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 1))),
    "average pool": Call(lambda x: F.avg_pool2d(x, 2)),
    "average pool, padded": Call(lambda x: F.avg_pool2d(x, 4, 2, 1)),
    "average pool, divisor": Call(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=8)),
    "average pool, ceil": Call(lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True)),
    "average pool, without pad": Call(lambda x: F.avg_pool2d(x, 2, 1, 1, False, False)),
    "adaptive max": Call(lambda x: F.adaptive_max_pool2d(x, (3, 5))),
    "adaptive average to 1": Call(lambda x: F.adaptive_avg_pool2d(x[:, :, :4], 1)),
    "adaptive average, ragged": Call(lambda x: F.adaptive_avg_pool2d(x[:, :, :6], (5, 4))),
    "residual, option A": Residual(),
    "pad and crop": Call(lambda x: F.pad(x, (1, -2, -1, 2))),
    "arithmetic": Call(lambda x: (3 - x) * 0.5 + x / 4 - 1),
    "tensor arithmetic": Call(
        lambda x: x[:, :1] * x[:, 1:] - 2 * x.mean((2, 3), keepdim=True) * 14
    ),
    "sum": Call(lambda x: x.sum(1).unsqueeze(1).squeeze(1)),
    "views": Call(lambda x: x.permute(0, 3, 1, 2).transpose(1, 2).reshape(len(x), 7, -1)),
    "expand, cat": Call(lambda x: torch.cat([x, x[:, :1].expand(-1, 3, -1, -1)], 1)),
    "negation": Call(lambda x: -x),
    "1-D convolution": nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 5, 2, 1), nn.Flatten()),
    "few input channels": nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.Flatten()),
    "many input channels": nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 3, 2, 1), nn.Flatten()
    ),
    "stride beyond the kernel": nn.Sequential(nn.Conv2d(2, 2, 2, 3), nn.Flatten()),
    "groups, few channels": nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.Flatten()),
    "depthwise": nn.Sequential(nn.Conv2d(2, 2, 3, groups=2, padding=1), nn.Flatten()),
    "transposed": nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), nn.Flatten()),
    "transposed, groups": nn.Sequential(
        nn.ConvTranspose2d(2, 4, (3, 2), groups=2, dilation=(2, 1)), nn.Flatten()
    ),
    "transposed, 1-D": nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(2, 1, 4, 3), nn.Flatten()),
    "matrix products": Call(
        lambda x: (
            torch.bmm(x.flatten(0, 1), x.flatten(0, 1).mT) @ x.flatten(0, 1)[:, :, :3]
        ).unflatten(0, (-1, 2))
    ),
    "attention without softmax": Call(lambda x: (x @ x.mT) @ x),
    "unbind, stack": Call(lambda x: torch.stack(x.unbind(2)[::2], -1)),
    "select": Call(lambda x: x[:, 1, -1] * x[..., 0, :4, 1].repeat(1, 1)[:, :1]),
    "repeat": Call(lambda x: x.repeat(1, 2, 1, 3) * 2),
    "flip, split": Call(lambda x: torch.cat(x.flip(3).split(3, 2)[::-1], 2)),
    "gather": Call(
        lambda x: x.gather(3, torch.arange(7)[None, None, :, None].expand(len(x), 2, 7, 3))
    ),
    "index": Call(lambda x: x[:, :, [0, 3, 3], [7, 1, 1]]),
    "scatter": Call(
        lambda x: (
            torch.zeros_like(x)
            .scatter(2, torch.ones(len(x), 2, 2, 8, dtype=int), x[:, :, :2])
            .add(1)
        )
    ),
    "scatter_add": Call(
        lambda x: x.scatter_add(3, torch.zeros(len(x), 2, 7, 4, dtype=int), 2 * x[..., 4:])
    ),
    "max over a dimension": Call(lambda x: x.max(2)[0] * x.max(3, keepdim=True)[0][..., 0, :1]),
    "masks": Call(
        lambda x: (
            torch.where((x > 1) | (x <= -2), x, 2 * x).masked_fill(x.eq(0), 3.0)
            * (x.ge(-1) & x.ne(2) & ~x.lt(-3))
        )
    ),
    "comparison of tensors": Call(lambda x: torch.where(x[:, :1] >= x[:, 1:], x[:, :1], -x[:, 1:])),
    "constructors": Call(
        lambda x: (
            x @ torch.eye(8, dtype=x.dtype)[:, :5]
            + torch.arange(5, dtype=x.dtype) * torch.full((5,), 2.0, dtype=x.dtype)
            + torch.ones_like(x)[..., :5]
            - x.new_zeros(5)
        )
    ),
    "clamp": Call(lambda x: x.clamp(-1, 2) * x.clamp(min=0) + x.clamp(max=3) * 2),
    "absolute": Call(lambda x: x.abs() * 3),
    "maximum, minimum": Call(
        lambda x: torch.maximum(x, x.flip(3)) * 2 - torch.minimum(x[:, :1], x[:, 1:])
    ),
    "roll, triangle": Call(lambda x: x.roll((1, -2), (2, 3)).tril(1)),
    "pixel shuffle": Call(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 1)[..., :6, :], 2)),
    "pixel shuffle by two": Call(lambda x: F.pixel_shuffle(x, 2) * 2, 4),
    "uneven split": Call(lambda x: torch.cat(x.split([3, 4], 2)[::-1], 2)),
    "powers": Call(lambda x: x**2 - x**3 / 2),
    "average pool, ceil and padded": Call(lambda x: F.avg_pool2d(x, 4, 3, 1, True) * 3),
    "split heads": Call(lambda x: x.reshape(len(x), 2, 7, 2, 4).permute(0, 3, 1, 2, 4)),
    "assignments": Call(assigned),
    "filled": Call(filled),
    "fewer numbers in memory": Call(lambda x: x.as_strided((len(x), 3, 4), (112, 2, 1)) * 2),
    "channels last": Call(
        lambda x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1) * 56
    ),
    "circular padding": Call(lambda x: F.pad(x, (1, 2, 1, 1), mode="circular") * x[..., :1, :1]),
    "reflected": Call(lambda x: F.pad(x, (1, 3, 2, 0), mode="reflect") * 2),
    "replicated": Call(lambda x: F.pad(x, (1, 3, 2, 0), mode="replicate") * 2),
    "reflected lines": Call(lambda x: F.pad(x.flatten(2), (4, 3), mode="reflect") * 2),
    "replicated solids": Call(lambda x: F.pad(x[:, None], (1, 0, 2, 1, 1, 1), mode="replicate")),
    "padded with a number": Call(lambda x: F.pad(x, (1, -2, 3, 0), value=2.5) * 2),
    "nearest": Call(lambda x: resized(x, (5, 11), mode="nearest") * 2),
    "nearest, exact": Call(lambda x: resized(x, (5, 11), mode="nearest-exact") * 2),
    "nearest, by a factor": Call(lambda x: F.interpolate(x, scale_factor=1.5) * 2),
    "nearest lines": Call(lambda x: F.interpolate(x.flatten(2), size=70) * 2),
    "bilinear": Call(lambda x: resized(x, mode="bilinear")),
    "bilinear, aligned": Call(lambda x: resized(x, (13, 15), mode="bilinear", align_corners=True)),
    "trilinear": Call(lambda x: resized(x[:, None], (4, 14, 16), mode="trilinear")),
    "lines": Call(lambda x: resized(x.flatten(2), 112, mode="linear")),
    "bicubic": Call(lambda x: resized(x, mode="bicubic")),
    "nearest solids": Call(lambda x: F.interpolate(x[:, None], scale_factor=2) * 2),
    "nearest, exact, lines and solids": Call(
        lambda x: (
            resized(x.flatten(2), 70, mode="nearest-exact")[..., :56].reshape(x.shape)
            * resized(x[:, None], (1, 7, 8), mode="nearest-exact")[:, :, 0]
        )
    ),
    "reflected solids": Call(lambda x: F.pad(x[:, None], (1, 0, 2, 1, 1, 1), mode="reflect")),
    "between by tensors": Call(lambda x: torch.lerp(x, 2 * x.flip(1), (x > 0).to(x.dtype) / 2)),
    "at most": Call(lambda x: torch.clamp(x, max=x.flip(3)) * 2),
    "uneven unsafe splits": Call(
        lambda x: torch.cat(torch.unsafe_split_with_sizes(x, [3, 4], 2)[::-1], 2) * 2
    ),
    "max pool of solids": Call(lambda x: F.max_pool3d(x[:, None], 2, (1, 2, 2), (1, 1, 0))),
    "max pool of solids, ceil": Call(lambda x: F.max_pool3d(x[:, None], (1, 2, 3), ceil_mode=True)),
    "average pool of solids": Call(lambda x: F.avg_pool3d(x[:, None], 2, 2, (1, 1, 0)) * 2),
    "least along a line": Call(lambda x: x.min(2)[0] * x.min(3, keepdim=True)[0][..., 0, :1]),
    "rounded": Call(lambda x: x + (x / 2).round() * 4 - (x / 4).floor() + (x / 4).ceil() * x),
    "truncated": Call(lambda x: x * (x / 2).trunc() + (x / 4).frac() * 8),
    "remainders": Call(lambda x: x.remainder(3) * 2 + torch.fmod(x, 3)),
    "quantised": Call(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.5, 1, -2, 5) * 2 + x),
    "straight through": Call(lambda x: 2 * x + ((x / 2).round() - x / 2).detach() * 2),
    "largest three": Call(lambda x: distinct(x).topk(3, 2)[0] * x[:, :, :3]),
    "smallest three": Call(lambda x: distinct(x).topk(3, -1, largest=False)[0] * 2),
    "in order": Call(lambda x: distinct(x).sort(2, descending=True)[0] * x),
    "in order, by positions": Call(lambda x: x.gather(3, distinct(x).argsort(3)) * 2),
    "in order, stable": Call(lambda x: distinct(x).sort(dim=3, stable=True)[0] * x),
    "median": Call(lambda x: distinct(x).median(2)[0] * x[:, :, 0]),
    "third smallest": Call(lambda x: distinct(x).kthvalue(3, 3, keepdim=True)[0] * x),
    "patches": Call(lambda x: F.unfold(x, 3, padding=1, stride=2) * 2),
    "patches put together": Call(lambda x: F.fold(F.unfold(x, (2, 3)), (7, 8), (2, 3))),
    "windows": Call(lambda x: x.unfold(2, 3, 2) * 2),
    "rows chosen": Call(lambda x: x.index_select(2, torch.tensor([3, 0, 0, 6])) * 2),
    "rows added": Call(
        lambda x: torch.ones_like(x).index_add(2, torch.tensor([0, 2, 1, 1, 0, 3, 3]), x, alpha=2)
    ),
    "entries put": Call(lambda x: x.index_put((torch.arange(len(x)),), 2 * x)),
    "rows of a table": Call(
        lambda x: x.sum((1, 2)) @ F.embedding(torch.tensor([1, 0] * 4), torch.eye(3, dtype=x.dtype))
    ),
    "diagonals": Call(lambda x: x.diagonal(1, 2, 3).diag_embed(-1)[..., :2] * 2),
    "triangle": Call(lambda x: x.triu(1) * 2),
    "turned": Call(lambda x: x.rot90(1, (2, 3)) * 2),
    "channels shuffled": Call(lambda x: F.channel_shuffle(x, 2) * 2, 4),
    "squeezed": Call(lambda x: (x[:, :1] * 2).squeeze().reshape(len(x), -1)),
    "unsafe splits": Call(lambda x: torch.cat(torch.unsafe_split(x, 3, 2)[::-1], 2) * 2),
    "sums so far": Call(lambda x: x.cumsum(2) * 2),
    "combined": Call(
        lambda x: torch.addcmul(x, x, x.flip(1), value=0.5) + torch.lerp(x, 2 * x.flip(2), 0.25)
    ),
    "quotient added": Call(lambda x: torch.addcdiv(x, x, (x > 0) * 3.0 + 1, value=0.5)),
    "clipped by tensors": Call(
        lambda x: x.clamp(torch.full_like(x, -1), torch.full_like(x, 2)) + x.clamp_min(x.flip(1))
    ),
    "sum of magnitudes": Call(lambda x: torch.linalg.vector_norm(x, 1, 2)),
    "whole powers": Call(lambda x: x**4 + (x > 0) * x**5 + ((x > 0) * 3.0 + 1) ** -2),
    "threshold": Call(lambda x: F.threshold(x, 1, 20.0) * 2),
    "softly shrunk": Call(lambda x: F.softshrink(x, 1.0) * 2),
    "hard shrunk": Call(lambda x: F.hardshrink(x, 1.0) * 2),
    "numbers in slices": Call(bordered),
    "the largest alone": Call(chosen_alone),
    "randomised leaky ReLU": Call(lambda x: F.rrelu(x, 0.25, 0.75) * 2),
    "joined with nothing": Call(lambda x: torch.cat([x.new_zeros(0), x * 2, x[:, :0]], 1)),
    "own kernels": Call(lambda x: with_own_kernels(x, stride=2, padding=1, dilation=(1, 2))),
    "own kernels, transposed": Call(lambda x: with_own_kernels_transposed(x, stride=2, padding=1)),
    "products along a line": Call(lambda x: x[:, :, :4].prod(2) * 2),
    "products so far": Call(lambda x: (x[..., :4] + 4).cumprod(3)),
    "cross products": Call(lambda x: torch.linalg.cross(x[:, :, :3], x[:, :, 4:], dim=2)),
    "larger and smaller": Call(lambda x: torch.fmax(x, x.flip(3)) - 2 * torch.fmin(x, x * x)),
    "numbers alone": Call(lambda x: torch.nan_to_num(x * 2, 1.0)),
    "3-D convolution": nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, (2, 3, 3), padding=1), nn.Flatten()
    ),
}


def eager(model, x, v):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf), leaf, v)[0]


@pytest.mark.parametrize("model", EXACT.values(), ids=EXACT)
def test_networks_without_rounding_agree_exactly(model):
    model = integers(model.double())
    x = integer_inputs(3, 2, 7, 8)
    with torch.no_grad():
        logits = model(x)
    v = integer_inputs(*logits.shape, seed=5)
    theirs, prepared = eager(model, x, v), exact.prepare(model)  # captured once for all engines
    for engine in exact.ENGINES:
        found = exact.gradient(prepared, x, v, engine=engine)
        assert torch.equal(found.to_torch(), theirs), engine
        # balls and mpmath know that nothing was rounded; the bound on pairs is above 2^-106, and
        # float64 claims four roundings at least
        most = {"double_word": -90, "float64": -51}.get(engine, -math.inf)
        assert found.log2_error <= most, engine
    interpreter = Interpreter(prepared.network_for(x).capture, exact.MpArithmetic(64))
    z = interpreter.forward(x[:1]).logits
    assert torch.equal(interpreter.arithmetic.to_torch(z), logits[:1])


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_powers_by_tensors_are_those_of_float64(engine):
    """Which computes these without rounding, where engines take logarithms."""
    model, x = Call(powers_of_numbers).double().eval(), integer_inputs(2, 2, 7, 8)
    v = integer_inputs(*model(x).shape, seed=5)
    found = exact.gradient(model, x, v, engine=engine)
    theirs = eager(model, x, v)
    error = (found.to_torch() - theirs).norm() / theirs.norm()
    # what the engine says, and the rounding of its result to float64
    assert error <= 2.0**found.log2_error + 2.0**-53


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_weights_by_channel_are_quantised(engine):
    """PyTorch refuses float64 numbers, so that the network is float32, and its numbers integers."""
    model, x = Call(quantised_by_channel).eval(), integer_inputs(2, 2, 7, 8).float()
    v = integer_inputs(*model(x).shape, seed=5).float()
    found = exact.gradient(model, x, v, engine=engine).to_torch()
    assert torch.equal(found.float(), eager(model, x, v))


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_the_comparison_notices_a_wrong_operation(monkeypatch, engine):
    """Negative control: a max pooling that remembers the wrong places."""
    model = integers(EXACT["max pool"].double())
    x, name = integer_inputs(1, 2, 7, 8), "aten.max_pool2d_with_indices.default"
    v = integer_inputs(*model(x).shape)
    right = OPERATIONS[name].meaning

    def wrong(A, *arguments):
        values, indices = right(A, *arguments)
        return values, indices + 1

    monkeypatch.setitem(OPERATIONS, name, replace(OPERATIONS[name], meaning=wrong))
    with pytest.raises(ContradictedError, match=name):
        exact.gradient(model, x, v, engine=engine)


class ResNetLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).reshape(2, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(4),
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.stem((x - self.mean) / 0.25), inplace=True)
        x = F.max_pool2d(F.relu(self.block(x) + x), 3, 2, 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_a_resnet_with_batch_norm_agrees_to_rounding(engine):
    model = seeded(ResNetLike()).double()
    x, v = normal(2, 2, 9, 9).double(), normal(2, 5).double()
    found = exact.gradient(model, x, v, engine=engine).to_torch()
    theirs = eager(model, x, v)
    error = float((found - theirs).norm() / theirs.norm())
    # about 20 operations deep with sums of at most 36 terms: below 20 * 36 u; and rounding shows
    assert 0 < error < 20 * 36 * 2.0**-53


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize("function", [F.softmax, F.log_softmax], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_softmax_agrees_to_rounding(function, dim, engine):
    model = Call(lambda x: function(x * 3, dim))
    x = normal(2, 2, 3, 4).double()
    v = normal(2, 24, seed=3).double()
    found, theirs = exact.gradient(model.eval(), x, v, engine=engine).to_torch(), eager(model, x, v)
    error = float((found - theirs).norm() / theirs.norm())
    # the amplification of an exponential's argument, at most 20, times a few roundings
    assert 0 < error < 200 * 2.0**-53


NORMS = {
    "layer norm": nn.LayerNorm((3, 4)),
    "layer norm without weights": nn.LayerNorm(4, elementwise_affine=False),
    "group norm": nn.GroupNorm(2, 4),
    "batch norm": nn.BatchNorm2d(4),
    "instance norm": nn.InstanceNorm2d(4),
    "instance norm with weights": nn.InstanceNorm2d(4, affine=True),
    "maxima with ties": Call(
        lambda x: (x.relu().amax((2, 3)) + x.relu().amin(1).sum((1, 2))[:, None]).repeat(1, 12)
    ),
}


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_agree_to_rounding(norm, engine):
    model = seeded(nn.Sequential(norm, nn.Flatten())).double()
    x, v = normal(2, 4, 3, 4).double(), normal(2, 48, seed=5).double()
    found, theirs = exact.gradient(model, x, v, engine=engine).to_torch(), eager(model, x, v)
    error = float((found - theirs).norm() / theirs.norm())
    # sums of 24 terms, three of them in a row, and the subtraction of means amplifies by 4 here
    assert 0 <= error < 4 * 3 * 24 * 2.0**-53


ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, 0.7),
    "elu in place": lambda x: F.elu_(x * 1),
    "selu": F.selu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)),
    "absolute, square root": lambda x: (x.abs() + 1).sqrt(),
    "normalised": lambda x: F.normalize(x, dim=1),
    "third norm": lambda x: torch.linalg.vector_norm(x, 3, 2),
    "largest magnitude": lambda x: torch.linalg.vector_norm(x, math.inf, 2),
    "distances of rows": lambda x: torch.cdist(x, x.flip(1) + 9),
    "log odds": lambda x: torch.logit(x.sigmoid()),
    "times a logarithm": lambda x: torch.special.xlogy(x, x.abs() + 1),
    "root, by a power": lambda x: (x.abs() + 1) ** 0.5 + (x.abs() + 1) ** -1.5,
    "means of groups": lambda x: (
        by_group(x, "mean", torch.tanh) + by_group(x, "mean", torch.tanh, include_self=False)
    ),
    "mean of squared distances": lambda x: (
        torch.stack([F.mse_loss(a, a.flip(0)) for a in x])[:, None, None, None] * x
    ),
    "deviation and mean": lambda x: torch.add(*torch.std_mean(x, 3, keepdim=True)) * x,
    "product": lambda x: (
        torch.prod(x.abs() + 1, 3, keepdim=True).log() + (x.abs() + 1).prod(1).log()[:, None]
    ),
    "third root": lambda x: (x.abs() + 1) ** (1 / 3),
    "read between pixels": lambda x: F.grid_sample(
        x, (x[:, :, :2] / 3).permute(0, 2, 3, 1), align_corners=False
    ),
    "read up to the border": lambda x: F.grid_sample(
        x, x.permute(0, 2, 3, 1) * 0.7, padding_mode="border", align_corners=True
    ),
    "turned by its own numbers": lambda x: F.grid_sample(
        x,
        F.affine_grid(x.flatten(1)[:, 2:8].reshape(-1, 2, 3) / 5, x.shape, align_corners=False),
        align_corners=False,
    ),
    "sine": torch.sin,
    "cosine of large angles": lambda x: torch.cos(5 * x),
    "tangent": lambda x: torch.tan(x / 5),
    "sinc": lambda x: torch.sinc(x) * x.flip(3),  # its gradient needs the value, too
    "arc tangent": torch.atan,
    "arc sine, arc cosine": lambda x: torch.asin(x / 8) * torch.acos(x / 9),
    "angles": lambda x: torch.atan2(x, x.flip(2) + 0.1) + torch.atan2(x - 8, x),
    "inverse hyperbolic": lambda x: x.asinh() * (x / 9).atanh() + (x.abs() + 2).acosh(),
    "power of two": lambda x: 2**x + torch.exp2(-x),
    "logarithms": lambda x: x.abs().log1p() + (x.abs() + 1).log2() - (x.abs() + 1).log10(),
    "exponential less one": torch.expm1,
    "complementary error function": torch.erfc,
    "hyperbolic": lambda x: torch.sinh(x / 4) + torch.cosh(x / 4),
    "mish": F.mish,
    "local response norm": lambda x: F.local_response_norm(x, 2),
    "gate": lambda x: F.glu(x, 3),
    "celu": lambda x: F.celu(x, 0.5),
    "log sigmoid": F.logsigmoid,
    "log sum exp": lambda x: x.logsumexp((1, 3)),
    "log add exp": lambda x: torch.logaddexp(x, x.flip(1) / 2),
    "variance": lambda x: x.var((1, 2)),
    "deviation": lambda x: x.std(3, correction=0),
    "variance and mean": lambda x: torch.cat(torch.var_mean(x, 1), 1),
    "hypotenuse": lambda x: torch.hypot(x, x.flip(1) + 9),
    "distance": lambda x: F.pairwise_distance(x, x.flip(3) + 9),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(3) + 9, 2),
    "smaller, smoothed": lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True),
    "smaller, cubic": lambda x: F.interpolate(x, (2, 2), mode="bicubic", antialias=True),
    "bilinear by thirds": lambda x: F.interpolate(x, (4, 7), mode="bilinear"),
    "bicubic by a factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic"),
}


@pytest.mark.parametrize("function", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_agree_to_rounding(function):
    model = Call(lambda x: function(x)).eval()
    x = 2 * normal(2, 2, 3, 4).double()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 7.0  # a kink, and beyond every threshold
    x[0, 0, 1, 0], x[0, 0, 1, 1], x[0, 0, 1, 2], x[0, 1, 0, 0] = 3.0, -3.0, 6.0, -1.0  # more kinks
    v = normal(*model(x).shape, seed=3).double()
    theirs, prepared = eager(model, x, v), exact.prepare(model)
    # fewer than 20 roundings, none of them amplified by more than |x| < 8 here
    allowed = 20 * 8 * 2.0**-53
    for engine in exact.ENGINES:
        found = exact.gradient(prepared, x, v, engine=engine).to_torch()
        assert float((found - theirs).norm() / theirs.norm()) < allowed, engine
    interpreter = Interpreter(prepared.network_for(x).capture, exact.MpArithmetic(128))
    z = interpreter.arithmetic.to_torch(interpreter.forward(x[:1]).logits)
    assert float((z - model(x[:1])).norm() / z.norm()) < allowed


def slope_of_sinc(x):
    """(pi x cos(pi x) - sin(pi x)) / (pi x**2), and 0 at 0, from 300 bits."""
    with mpmath.workprec(300):
        turn = mpmath.pi * x
        return float((turn * mpmath.cos(turn) - mpmath.sin(turn)) / (turn * x)) if x else 0.0


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinc_has_its_value_and_slope_at_0_and_near_it(engine, dtype):
    """Where PyTorch's own gradient cancels, so that float64 is no judge."""
    x = torch.tensor([[0.0, -0.0, 2.0**-6, -(2.0**-9), 2.0**-12]], dtype=dtype)
    found = exact.gradient(Call(torch.sinc).eval(), x, torch.ones_like(x), engine=engine)
    slopes = torch.tensor([[slope_of_sinc(t) for t in x[0].tolist()]], dtype=torch.float64)
    error = float((found.to_torch() - slopes).norm() / slopes.norm())
    # both are rounded to float64, and the graph has float64's pi, which is off by less than u/2 of
    # it, twice as much in a slope of nearly -x pi**2 / 3
    assert error <= 3 * 2.0**-53 + 2.0**found.log2_error
    assert found.to_torch()[0, :2].tolist() == [0.0, 0.0]
    interpreter = Interpreter(exact.capture(Call(torch.sinc).eval(), x), exact.BallArithmetic(128))
    z = interpreter.arithmetic.to_torch(interpreter.forward(x).logits)
    assert z[0, :2].tolist() == [1.0, 1.0]
    squares = (math.pi * x.double()[:, 2:]) ** 2
    # the series 1 - t/6 + t**2/120, its next term, and four roundings to float64
    beyond = float(squares.max()) ** 3 / 5040 + 4 * 2.0**-53
    assert float((z[:, 2:] - (1 - squares / 6 + squares**2 / 120)).abs().max()) <= beyond


@pytest.mark.parametrize(
    ("name", "arguments", "options", "value"),
    [
        ("sinc.default", (0.0,), {}, 1.0),
        ("sinc.default", (0.5,), {}, 2 / math.pi),
        ("acos.default", (0.5,), {}, math.pi / 3),
        ("atan2.default", (1.0, -1.0), {}, 0.75 * math.pi),
        ("gelu.default", (0.5,), {}, 0.34573123063700656),
        ("gelu.default", (0.5,), {"approximate": "tanh"}, 0.34571400982514394),
        ("gelu_backward.default", (1.0, 0.5), {}, 0.8674951246561629),
    ],
)
def test_functions_of_a_number_without_dimensions_have_none(name, arguments, options, value):
    """Values by PyTorch in float64; its roundings, and that of the literal, are two at most."""
    meaning = OPERATIONS[f"aten.{name}"].meaning
    for A in (exact.MpArithmetic(64), exact.BallArithmetic(64)):
        numbers = [A.from_torch(torch.tensor(a, dtype=torch.float64)) for a in arguments]
        found = meaning(A, *numbers, **options)
        assert A.shape(found) == ()
        assert float(A.to_torch(found)) == pytest.approx(value, rel=2.0**-51)


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_hardsigmoid_has_a_slope_of_one_sixth(engine):
    """PyTorch's float64 kernel has the sixth rounded to float32; the exact network does not."""
    x, v = normal(1, 40).double(), torch.ones(1, 40, dtype=torch.float64)
    model = Call(F.hardsigmoid).eval()
    assert set(exact.gradient(model, x, v, engine=engine).to_torch().unique().tolist()) == {1 / 6}
    sixth_in_float32 = float(torch.tensor(1 / 6))
    assert set(eager(model, x, v).unique().tolist()) == {sixth_in_float32}
    assert 2.0**-26 < sixth_in_float32 * 6 - 1 < 2.0**-24


def test_unsupported_operations_are_refused_together():
    model = Call(lambda x: torch.digamma(x) + torch.fft.fft(x).abs() + torch.lgamma(x))
    with pytest.raises(UnsupportedOperationError) as refusal:
        exact.capture(model.eval(), torch.rand(1, 2, 4, 4))
    for name in ("aten.digamma.default", "aten.lgamma.default", "aten._fft_r2c"):
        assert name in str(refusal.value)


def test_a_refusal_names_the_modules_and_the_line():
    body = nn.Sequential(nn.Flatten(), Call(torch.erfinv), nn.Linear(8, 8), Call(torch.erfinv))
    model = nn.Sequential(body, Call(torch.lgamma), Call(torch.erfinv), Call(torch.erfinv)).eval()
    with pytest.raises(UnsupportedOperationError) as refusal:
        exact.capture(model, torch.rand(1, 2, 4))
    line = Call.forward.__code__.co_firstlineno + 1
    called = f"(Call, test_operations.py:{line})"
    assert f"aten.lgamma.default in 1 {called}" in str(refusal.value)
    assert f"aten.erfinv.default in 0.1 {called}, 0.3 {called}, 2 {called} and 1 more" in str(
        refusal.value
    )
    assert "aten.digamma.default;" in str(refusal.value)  # of the backward half: nobody calls it
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            Call(lambda x: x.transpose(1, 2).as_strided((len(x), 8), (128, 1))),
            "of a tensor that does not lie in memory row by row",
        ),
        (Call(lambda x: x + (10 * x).to(torch.int32)), "conversion to torch.int32"),
        (Call(lambda x: torch.cdist(x, x, p=1.0)), "distances of order 1"),
        (Call(lambda x: torch.logit(x, 0.01)), "clipped by 0.01"),
        (
            Call(
                lambda x: F.grid_sample(
                    x, x.permute(0, 2, 3, 1), mode="nearest", align_corners=False
                )
            ),
            "not bilinear",
        ),
    ],
)
def test_unsupported_uses_are_refused_with_the_reason(model, reason):
    with pytest.raises(UnsupportedOperationError, match=reason):
        exact.capture(model.eval(), torch.rand(1, 2, 8, 8))


def test_arithmetic_is_local_and_exact_where_it_says_so():
    A = exact.MpArithmetic(80)
    numbers = torch.tensor([1e-300, -3.5, 0.0, float("inf"), 2.0**-1074], dtype=torch.float64)
    assert torch.equal(A.to_torch(A.from_torch(numbers)), numbers)
    assert mpmath.mp.prec == 53
    with pytest.raises(ValueError, match="bits=52: at least 53 are needed"):
        exact.MpArithmetic(52)


@pytest.mark.parametrize(
    ("mantissa", "exponent"),
    [(2**54 + 1, -54), (3, -1075), (1, -1075), (1, -1076), (2**53 - 1, 971), (2**54 - 1, 970)],
)
def test_conversion_to_float64_rounds_once(mantissa, exponent):
    """Against exact rationals: Python divides integers with one correct rounding."""
    A = exact.MpArithmetic(200)
    number = A.context.ldexp(A.context.mpf(mantissa), exponent)
    found = float(A.to_torch(np.array([number], dtype=object))[0])
    if mantissa == 2**54 - 1:
        assert found == float("inf")  # halfway to 2**1024, ties to even
    else:
        assert found == mantissa * 2 ** max(exponent, 0) / 2 ** max(-exponent, 0)


def test_scaled_conversion_has_no_range():
    A = exact.MpArithmetic(100)
    huge = np.array([A.context.ldexp(A.context.mpf(3), -5000), A.context.zero], dtype=object)
    values, exponent = A.to_scaled(huge)
    assert values.tolist() == [0.75, 0.0]
    assert exponent == -4998


def test_products_of_what_is_not_finite_are_ieee():
    A = exact.MpArithmetic(64)
    b = torch.tensor([[1.0, 1.0, 0.0, 1.0], [torch.inf, -torch.inf, torch.inf, torch.nan]])
    for a in (torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0]])):
        found = A.to_torch(A.matmul(A.from_torch(a), A.from_torch(b)))
        assert torch.equal(found.isnan(), (a @ b).isnan())
        assert torch.equal(found.nan_to_num(), (a @ b).double().nan_to_num())


def test_a_number_that_a_difference_swallows_is_noted():
    """And 2 - 1, which is the subtrahend too, is not."""
    A = exact.MpArithmetic(64)
    A.sub(A.from_torch(torch.tensor([2.0, 0.0])), 1.0)
    A.add(A.from_torch(torch.tensor([-2.0])), 1.0)
    assert not A.has_absorbed
    A.sub(A.from_torch(torch.tensor([2.0**-70])), 1.0)
    assert A.has_absorbed


@settings(deadline=None)
@given(
    a=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6),
    b=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6),
)
def test_products_are_rational_numbers_rounded_once(a, b):
    n = min(len(a), len(b))
    A = exact.MpArithmetic(60)
    left = A.from_torch(torch.tensor([a[:n]], dtype=torch.float64))
    right = A.from_torch(torch.tensor([b[:n]], dtype=torch.float64).T)
    found = A.matmul(left, right)[0, 0]
    true = sum(Fraction(x) * Fraction(y) for x, y in zip(a[:n], b[:n], strict=True))
    assert A.context.mpf(found) == A.context.mpf(true.numerator) / A.context.mpf(true.denominator)
    # (mpmath's own fdot drops 1 in 1 - 1e300 + 1e300)


def test_a_remembered_matrix_is_not_mistaken_for_another():
    A = exact.MpArithmetic(64)
    one = A.from_torch(torch.ones(1, 3))
    for k in range(100):  # freed memory is used again
        matrix = A.from_torch(torch.full((3, 2), float(k)))
        assert A.to_torch(A.matmul(one, matrix)).tolist() == [[3.0 * k] * 2]
        assert A.to_torch(A.matmul(one[:, :2], matrix.T[:, :2][:2])).tolist() == [[2.0 * k] * 2]


def test_products_have_no_range():
    """exp(-1e19) beside 1: 1.4e19 bits apart, so an integer grid is out of the question."""
    A = exact.MpArithmetic(64)
    tiny = A.context.exp(A.context.mpf(-(10**19)))
    row = A.array([A.context.one, tiny], (1, 2))
    column = A.array([A.context.zero, A.context.mpf(3)], (2, 1))
    assert A.matmul(row, column)[0, 0] == 3 * tiny
    both = A.array([A.context.mpf(2), A.context.mpf(3)], (2, 1))
    assert A.matmul(row, both)[0, 0] == 2
