"""Integers, masks and constants mean in an exact network what they mean to PyTorch.

A sweep: every supported operation that has a meaning without rounding, on operands of every dtype,
several operations a graph and one capture for all engines, against the eager run. All numbers are
dyadic fractions of few bits, so that equality is exact.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fperr import exact
from fperr.errors import ModelError, UnsupportedOperationError
from fperr.exact import BallArithmetic, Interpreter, MpArithmetic
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.operations import OPERATIONS
from tests.conftest import Of, at_most, normal

WIDTH = 4
DTYPES = {
    "bool": torch.bool,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def operand(x, dtype, offset):
    """Numbers (batch, 2, WIDTH) of that dtype, which depend on x by sample."""
    moved = x.roll(offset, -1) + 0.25 * offset
    if dtype == torch.bool:
        return moved > 0
    if dtype == torch.int64:
        return (moved > 0).long() * 2 + (moved > 1).long() - 1
    return moved.to(dtype)


UNARY = {
    "neg": lambda a: -a if a.dtype != torch.bool else ~a,
    "not": torch.logical_not,
    "bool": lambda a: a.bool(),
    "to float": lambda a: a.to(torch.float32),
    "to its own": lambda a: a.to(a.dtype).clone(),
    "sum": lambda a: a.sum(-1),
    "sum to float": lambda a: a.sum((1, 2), dtype=torch.float64)[:, None],
    "mean": lambda a: a.mean(-1, dtype=torch.float64),
    "mean of all": lambda a: a.mean((1, 2), dtype=torch.float32)[:, None],
    "any": lambda a: a.any(-1),
    "amax": lambda a: a.amax(-1),
    "amin": lambda a: a.amin(1),
    "max": lambda a: a.max(-1)[0],
    "where the max is": lambda a: a.max(-1)[1],
    "min": lambda a: a.min(-1)[0],
    "where the min is": lambda a: a.min(-1)[1],
    "argmax": lambda a: (a if a.dtype != torch.bool else a.long()).argmax(-1),
    "square": lambda a: a * a,
    "power": lambda a: a**2 if a.dtype != torch.bool else a,
    "views": lambda a: a.transpose(1, 2).reshape(len(a), -1).unsqueeze(1).squeeze(1),
    "expand": lambda a: a[:, :1].expand(-1, 2, -1),
    "cat": lambda a: torch.cat([a, a.flip(-1)], -1),
    "stack": lambda a: torch.stack([a[:, 0], a[:, 1]], -1),
    "split": lambda a: torch.cat(a.split([1, 3], -1)[::-1], -1),
    "slices": lambda a: a[:, ::2, 1:],
    "roll, tril": lambda a: a.roll(1, 1).tril(),
    "repeat": lambda a: a.repeat(1, 1, 2),
    "unbind": lambda a: a.unbind(1)[1],
    "constant index": lambda a: a[:, [1, 0], 1:3],
    "gather": lambda a: a.gather(-1, a.new_ones(a.shape, dtype=torch.int64)),
    "scatter": lambda a: torch.zeros_like(a).scatter(
        -1, torch.zeros(len(a), 2, 1, dtype=torch.int64), a[..., :1]
    ),
    "ones, zeros": lambda a: torch.ones_like(a) * a + torch.zeros_like(a),
    "pad": lambda a: F.pad(a, (1, -1)),
    "pad with a number": lambda a: F.pad(a, (1, -1), value=1),
    "circular": lambda a: F.pad(a, (1, 2), mode="circular"),
    "assigned": lambda a: _assigned(a),
    "diagonals": lambda a: a.diagonal(0, 1, 2).diag_embed(1),
    "rot90, triu": lambda a: a.rot90(1, (1, 2)).triu(),
    "windows": lambda a: a.unfold(2, 2, 1),
    "rows chosen": lambda a: a.index_select(2, torch.tensor([1, 1, 0])),
    "rows added": lambda a: torch.zeros_like(a).index_add(2, torch.tensor([1, 1, 0, 3]), a),
    "channels shuffled": lambda a: F.channel_shuffle(a.reshape(len(a), 4, 2), 2),
    "squeezed": lambda a: a.reshape(len(a), 2, 1, 4, 1).squeeze().reshape(len(a), 2, 4),
    "unsafe split": lambda a: torch.cat(torch.unsafe_split(a, 2, 2)[::-1], 2),
    "entries put": lambda a: a.index_put((torch.arange(len(a)),), a.flip(-1)),
    "sums so far": lambda a: a.cumsum(-1, dtype=torch.float64),
}
REAL_UNARY = {
    "relu": F.relu,
    "leaky relu": lambda a: F.leaky_relu(a, 0.5),
    "hardtanh": F.hardtanh,
    "abs": torch.abs,
    "sign": torch.sign,
    "clamp": lambda a: a.clamp(-0.5, 1.0),
    "max pool": lambda a: F.max_pool2d(a[:, None], (1, 2))[:, 0],
    "average pool": lambda a: F.avg_pool2d(a[:, None], (1, 2))[:, 0],
    "adaptive average": lambda a: F.adaptive_avg_pool2d(a[:, None], (1, 2))[:, 0],
    "adaptive maximum": lambda a: F.adaptive_max_pool2d(a[:, None], (1, 2))[:, 0],
    "prelu": lambda a: F.prelu(a, torch.tensor([0.5], dtype=a.dtype)),
    "matrices": lambda a: a @ a.transpose(1, 2) + a[:, :1] @ _weight(a, 4, 2),
    "linear": lambda a: F.linear(a, _weight(a, 3, 4), _weight(a, 3)),
    "matrix and bias": lambda a: torch.addmm(
        _weight(a, 3), a[:, 0], _weight(a, 4, 3), alpha=2, beta=4
    ),
    "matrices and bias": lambda a: (
        torch.baddbmm(_weight(a, 1, 1, 3), a, _weight(a, 4, 3)[None], alpha=2, beta=4)
        if len(a) == 1
        else 2 * (a @ _weight(a, 4, 3)) + 4 * _weight(a, 1, 1, 3)
    ),
    "convolution": lambda a: F.conv1d(_full(a), _weight(_full(a), 3, 2, 2), stride=2),
    "transposed": lambda a: F.conv_transpose1d(_full(a), _weight(_full(a), 2, 3, 2)),
    "pixel shuffle": lambda a: F.pixel_shuffle(a.reshape(len(a), 4, 1, 2), 2),
    "pixel unshuffle": lambda a: F.pixel_unshuffle(a.reshape(len(a), 1, 2, 4), 2),
    "number less it": lambda a: 2 - a,
    "less a number": lambda a: torch.where((a < 0.5) | (a != 0.25) & (a == 1), a - 1, a + 1),
    "number scattered": lambda a: a.scatter(-1, torch.zeros(len(a), 2, 1, dtype=torch.int64), 0.5),
    "reciprocal": lambda a: ((a > 0) * 3.0 + 1).to(a.dtype).reciprocal() * a,
    "permute": lambda a: a.permute(0, 2, 1) * 2,
    "squeeze": lambda a: a[:, :1].squeeze((1,)),
    "equal split": lambda a: torch.cat(a.split(2, -1)[::-1], -1),
    "at least": lambda a: a.clamp_min(0.25),
    "detached": lambda a: a * a.detach().contiguous(),
    "whole numbers": lambda a: a.round() + a.floor() - a.ceil() + a.trunc() * a.frac(),
    "remainder": lambda a: a.remainder(0.75) + torch.fmod(a, 0.75),
    "reflected": lambda a: F.pad(_full(a), (1, 2), mode="reflect"),
    "replicated": lambda a: F.pad(_full(a), (1, 2), mode="replicate"),
    "nearest": lambda a: F.interpolate(_full(a), size=7),
    "threshold": lambda a: F.threshold(a, 0.25, 2.0),
    "shrunk": lambda a: F.softshrink(_full(a), 0.5) + F.hardshrink(_full(a), 0.5),
    "combined": lambda a: torch.addcmul(a, a, a, value=0.5),
    "between": lambda a: torch.lerp(_full(a), _full(a) * 2, 0.25),
    "clipped": lambda a: a.clamp(torch.full_like(a, -0.5), torch.full_like(a, 1.0)),
    "magnitudes": lambda a: torch.linalg.vector_norm(_full(a), 1, -1),
}
BINARY = {
    "add": torch.add,
    "sub": lambda a, b: (
        (a if a.dtype != torch.bool else a.long()) - (b if b.dtype != torch.bool else b.long())
    ),
    "mul": torch.mul,
    "div": lambda a, b: a / ((b > 0) * 3 + 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "gt": torch.gt,
    "lt": torch.lt,
    "ge": torch.ge,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
    "logical and": torch.logical_and,
    "logical or": torch.logical_or,
    "logical xor": torch.logical_xor,
    "where": lambda a, b: torch.where(a > b, a, b),
    "where true": lambda a, b: torch.where(a.bool(), a + b, b),
    "masked fill": lambda a, b: (a + b).masked_fill(b > 0, 1),
    "add a multiple": lambda a, b: torch.add(
        a if a.dtype != torch.bool else a.long(),
        b if b.dtype != torch.bool else b.long(),
        alpha=2,
    ),
    "computed index": lambda a, b: a.gather(
        -1, (torch.zeros_like(a, dtype=torch.int64) + (b > 0)) + torch.arange(2).sum()
    ),
}
INTEGER_BINARY = {
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "remainder": lambda a, b: (a + 2) % (b.long() + 3),
    "floor division": lambda a, b: a.long() // (b.long() + 3),
}


def _assigned(a):
    y = torch.zeros_like(a)
    y[:, :, 1:3] = a[:, :, 2:4]
    y[:, 0] = a[:, 1]
    y[a > 0] = 1
    return y


def _weight(a, *shape):
    """Multiples of 1/2 in the dtype of `a`."""
    return ((torch.arange(math.prod(shape)) * 2 % 5 - 2) / 2).reshape(shape).to(a)


def _full(a):
    """`a`, or in single precision what the CPU has no half convolutions for."""
    return a.float() if a.dtype == torch.float16 else a


# operations that round, or of which PyTorch makes another one here: tested against float64 to its
# rounding in test_operations and test_random_graphs
ELSEWHERE = {
    f"aten.{name}"
    for name in (
        "_cdist_backward.default",
        "_trilinear.default",
        "addr.default",
        "aminmax.default",
        "huber_loss.default",
        "huber_loss_backward.default",
        "mse_loss.default",
        "mse_loss_backward.default",
        "mv.default",
        "scatter_reduce.two",
        "smooth_l1_loss.default",
        "smooth_l1_loss_backward.default",
        "std_mean.correction",
        "trace.default",
        "_cdist_forward.default",
        "isnan.default",
        "logit.default",
        "logit_backward.default",
        "xlogy.Tensor",
        "_log_softmax.default",
        "_log_softmax_backward_data.default",
        "_native_batch_norm_legit_no_training.default",
        "_safe_softmax.default",
        "_softmax.default",
        "_softmax_backward_data.default",
        "_unsafe_index_put.default",
        "_upsample_bicubic2d_aa.default",
        "_upsample_bicubic2d_aa_backward.default",
        "_upsample_bilinear2d_aa.default",
        "_upsample_bilinear2d_aa_backward.default",
        "_upsample_nearest_exact1d.default",
        "_upsample_nearest_exact1d_backward.default",
        "_upsample_nearest_exact2d.default",
        "_upsample_nearest_exact2d_backward.default",
        "_upsample_nearest_exact3d.default",
        "_upsample_nearest_exact3d_backward.default",
        "add.Scalar",
        "addcdiv.default",
        "alias.default",
        "fill.Tensor",
        "fmax.default",
        "fmin.default",
        "linalg_cross.default",
        "max.default",
        "min.default",
        "nan_to_num.default",
        "prod.dim_int",
        "acos.default",
        "acosh.default",
        "asin.default",
        "asinh.default",
        "atan.default",
        "atan2.default",
        "atanh.default",
        "cumprod.default",
        "avg_pool3d.default",
        "avg_pool3d_backward.default",
        "celu.default",
        "cos.default",
        "max_pool3d_with_indices.default",
        "max_pool3d_with_indices_backward.default",
        "sin.default",
        "tan.default",
        "clamp_max.Tensor",
        "clamp_min.Tensor",
        "col2im.default",
        "contiguous.default",
        "cosh.default",
        "cudnn_batch_norm.default",
        "diagonal_scatter.default",
        "elu.default",
        "elu_backward.default",
        "embedding.default",
        "erf.default",
        "erfc.default",
        "exp.default",
        "exp2.default",
        "expm1.default",
        "gelu.default",
        "gelu_backward.default",
        "fake_quantize_per_channel_affine_cachemask.default",
        "fake_quantize_per_channel_affine_cachemask_backward.default",
        "fake_quantize_per_tensor_affine_cachemask.default",
        "fake_quantize_per_tensor_affine_cachemask_backward.default",
        "glu.default",
        "glu_backward.default",
        "hardsigmoid.default",
        "hardsigmoid_backward.default",
        "affine_grid_generator.default",
        "grid_sampler_2d.default",
        "grid_sampler_2d_backward.default",
        "hardswish.default",
        "kthvalue.default",
        "median.dim",
        "sort.default",
        "sort.stable",
        "topk.default",
        "hardswish_backward.default",
        "hypot.default",
        "im2col.default",
        "lerp.Tensor",
        "linear.default",
        "log.default",
        "log10.default",
        "log1p.default",
        "log2.default",
        "log_sigmoid_backward.default",
        "log_sigmoid_forward.default",
        "logaddexp.default",
        "logsumexp.default",
        "mean.default",
        "mish.default",
        "mish_backward.default",
        "native_batch_norm.default",
        "native_batch_norm_backward.default",
        "native_group_norm.default",
        "native_group_norm_backward.default",
        "native_layer_norm.default",
        "native_layer_norm_backward.default",
        "norm.ScalarOpt_dim",
        "pow.Scalar",
        "pow.Tensor_Tensor",
        "reflection_pad2d.default",
        "reflection_pad2d_backward.default",
        "reflection_pad3d.default",
        "reflection_pad3d_backward.default",
        "replication_pad2d.default",
        "replication_pad2d_backward.default",
        "replication_pad3d.default",
        "replication_pad3d_backward.default",
        "reshape.default",
        "rsqrt.default",
        "rsub.Tensor",
        "sigmoid.default",
        "sigmoid_backward.default",
        "silu.default",
        "silu_backward.default",
        "sinc.default",
        "sinh.default",
        "softplus.default",
        "softplus_backward.default",
        "sqrt.default",
        "std.correction",
        "sub.Scalar",
        "tanh.default",
        "tanh_backward.default",
        "unsafe_split_with_sizes.default",
        "upsample_bicubic2d.default",
        "upsample_bicubic2d_backward.default",
        "upsample_bilinear2d.default",
        "upsample_bilinear2d_backward.default",
        "upsample_linear1d.default",
        "upsample_linear1d_backward.default",
        "upsample_nearest2d.default",
        "upsample_nearest2d_backward.default",
        "upsample_nearest3d.default",
        "upsample_nearest3d_backward.default",
        "upsample_trilinear3d.default",
        "upsample_trilinear3d_backward.default",
        "value_selecting_reduction_backward.default",
        "var.correction",
        "var_mean.correction",
    )
}


class Collected(nn.Module):
    """Every result of the functions as numbers, side by side, each with a coefficient of x."""

    def __init__(self, functions, dtypes, shapes=("whole", "whole")):
        super().__init__()
        self.functions, self.dtypes, self.shapes = functions, dtypes, shapes

    def forward(self, x):
        operands = [
            _part(operand(x, dtype, i), shape)
            for i, (dtype, shape) in enumerate(zip(self.dtypes, self.shapes, strict=True))
        ]
        parts = [function(*operands).to(torch.float64).flatten(1) for function in self.functions]
        return torch.cat([part * (1 + x[:, 0, :1]) for part in parts] + [x.flatten(1)], 1)


def _part(a, shape):
    return {"whole": a, "row": a[:, :1], "column": a[..., :1]}[shape]


def inputs(batch):
    """Multiples of 1/4 up to 2, with zeros and ties."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(-8, 9, (batch, 2, WIDTH), generator=generator).double() / 4


def check(functions, dtypes, shapes=("whole", "whole")):
    """Logits and gradients of all engines equal the eager run's, at batch 1 and 3."""
    model = Collected(list(functions), dtypes, shapes[: len(dtypes)]).eval()
    capture = exact.capture(model, inputs(1))
    pairs = BatchedNetwork(capture)
    single = [Interpreter(capture, A) for A in (MpArithmetic(64), BallArithmetic(64))]
    for batch in (1, 3):
        x = inputs(batch)
        leaf = x.clone().requires_grad_()
        z = model(leaf)
        v = torch.randint(-2, 3, z.shape, generator=torch.Generator().manual_seed(1)).double()
        (g,) = torch.autograd.grad(z, leaf, v)
        run = pairs.forward(x)
        found, undecided = pairs.gradient(x, v)
        assert not undecided.any()
        logits = pairs.arithmetic.to_samples(run.run.logits).reshape(-1, z.shape[1])
        assert torch.equal(logits.expand_as(z), z.detach())
        assert torch.equal((found.high + found.low).reshape(x.shape), g)
        for interpreter in single:
            A = interpreter.arithmetic
            for i in range(batch):
                alone = interpreter.forward(x[i : i + 1])
                assert torch.equal(A.to_torch(alone.logits), z[i : i + 1].detach())
                product = interpreter.products(alone.saved_values, A.from_torch(v[i : i + 1]))
                assert torch.equal(A.to_torch(product).reshape(x[i].shape), g[i])
    return capture


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_operations_on_one_operand(dtype):
    functions = dict(UNARY)
    if dtype.is_floating_point:
        functions |= REAL_UNARY
    if dtype == torch.bool:  # PyTorch has none of them
        functions = {k: f for k, f in functions.items() if k not in ("amin",)}
    check(functions.values(), [dtype])


PAIRS = list(itertools.product(DTYPES, DTYPES))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(("whole", "whole"), marks=pytest.mark.slow),
        pytest.param(("whole", "row"), marks=pytest.mark.slow),
        ("column", "row"),
    ],
)
def test_operations_on_two_operands(first, second, shapes):
    dtypes = DTYPES[first], DTYPES[second]
    functions = dict(BINARY)
    if shapes[0] == "column":
        del functions["computed index"]  # of one entry a row
    if not any(dtype.is_floating_point for dtype in dtypes):
        functions |= INTEGER_BINARY
    check(functions.values(), dtypes, shapes)


@pytest.mark.slow
def test_the_sweep_meets_the_table():
    """Every operation that an exact network may have is in it, but for those listed."""
    met = set()
    for dtype in DTYPES.values():
        functions = UNARY | (REAL_UNARY if dtype.is_floating_point else {})
        model = Collected(list(functions.values()), [dtype], ["whole"]).eval()
        capture = exact.capture(model, inputs(1))
        met |= {str(n.target) for n in capture.forward + capture.backward}
    for first, second in [("bool", "int64"), ("int64", "float64"), ("float32", "float64")]:
        model = Collected(list(BINARY.values()), (DTYPES[first], DTYPES[second])).eval()
        capture = exact.capture(model, inputs(1))
        met |= {str(n.target) for n in capture.forward + capture.backward}
    assert sorted((OPERATIONS.keys() - met) ^ ELSEWHERE) == []


def test_the_comparison_notices_a_wrong_meaning(monkeypatch):
    """Negative control: a sum of masks that counts."""
    monkeypatch.setattr("fperr.exact.node_kinds.NodeKinds.is_discrete", lambda *_: False)
    monkeypatch.setattr("fperr.exact.graph._refusal", lambda *_: None)
    with pytest.raises(AssertionError):
        check([torch.add], [torch.bool, torch.bool])


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize(
    "constant",
    [
        lambda: torch.full((6,), 0.1),
        lambda: torch.arange(0, 0.6, 0.1),
        lambda: torch.full((6,), 0.1, dtype=torch.float16),
        lambda: torch.linspace(0, 1, 6, dtype=torch.float32).sin(),
        lambda: torch.tensor([0.1] * 6),
        lambda: torch.ones(6) / 3,
    ],
)
def test_constants_have_the_dtype_that_the_graph_writes(engine, constant):
    model = Of(lambda x: x * constant().to(x.dtype)).eval()
    x, v = normal(2, 6).double(), torch.ones(2, 6).double()
    found = exact.gradient(model, x, v, engine=engine, digits=at_most(engine, 20)).to_torch()
    # x times a number: its derivative is that number, and nothing is rounded
    assert torch.equal(found, constant().double().expand(2, 6))


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x * torch.stack([r[r > 0].sum() for r in x])[:, None], "aten.index.Tensor"),
        (lambda x: x * (x > 0).nonzero().sum(), "aten.nonzero.default"),
        (lambda x: x * x.masked_select(x > 0).sum(), "aten.masked_select.default"),
    ],
)
def test_shapes_that_depend_on_the_data_are_refused(engine, function, operation):
    x = torch.tensor([[0.9, -0.1, -0.2], [0.9, 0.8, 0.7]])
    with pytest.raises(UnsupportedOperationError) as refusal:
        exact.gradient(Of(function).eval(), x, torch.ones(2, 3), engine=engine)
    assert f"{operation} (how many entries it selects depends on the data" in str(refusal.value)


def test_the_remedy_for_selecting_by_a_mask_works():
    model = Of(lambda x: x * (x * (x > 0)).sum(1, keepdim=True)).eval()  # multiply by the mask
    x, v = normal(3, 4).double(), normal(3, 4, seed=5).double()
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    found = exact.gradient(model, x, v, engine="ball").to_torch()
    # sums of 4 terms, twice
    assert float((found - theirs).norm() / theirs.norm()) < 2 * 4 * 2.0**-53


@pytest.mark.parametrize("engine", exact.ENGINES)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.amax(),
        lambda x: x - x.mean(0),
        lambda x: x / x.norm(),
        lambda x: x if len(x) > 1 else 2 * x,
        lambda x: torch.cat([x[1:], x[:1]]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_samples_that_depend_on_each_other_are_refused(engine, function, batch):
    x = 0.5 + torch.rand(batch, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match=r"the model depends on the batch. Use running statistics"):
        exact.gradient(Of(function).eval(), x, torch.ones(batch, 4), engine=engine)


def test_randomness_is_refused():
    model = Of(lambda x: x * torch.rand(4)).eval()
    with pytest.raises(ModelError, match=r"two runs of the model on the same batch differ"):
        exact.gradient(model, normal(2, 4), torch.ones(2, 4), engine="ball")


@pytest.mark.parametrize("engine", sorted({*exact.ENGINES} - {"float64"}))
def test_large_integers_are_exact(engine):
    """2^53 + 1 is no float64, so that float64 cannot give it."""
    model = Of(lambda x: (x * ((x > 0).long() * (2**53) + 1)).sum(1, keepdim=True).repeat(1, 2))
    x, v = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    found = exact.gradient(model.eval(), x, v, engine=engine, digits=20)
    assert [int(n) for n in found.midpoint[0]] == [2**53 + 1, 1]
