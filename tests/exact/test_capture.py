"""The capture: bit-equal to eager, stale weights noticed, what cannot be captured refused."""

import pytest
import torch
from torch import nn

from fperr import exact
from fperr.errors import (
    CaptureAuditError,
    ModelError,
    ReferenceNotCertifiedError,
    StaleCaptureError,
)
from fperr.exact.call_sites import call_sites
from fperr.exact.graph import probe
from fperr.exact.interpreter import Interpreter
from fperr.exact.mp import MpArithmetic
from fperr.exact.saved_values import float_run, sample_of
from tests.conftest import normal, tiny_mlp
from tests.makers.networks import build


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_replay_has_the_bits_of_the_eager_run(fashion_standard, fashion, dtype, batch):
    model, x = fashion_standard.to(dtype), fashion.x[:batch].to(dtype)
    captured = exact.capture(model, x)  # audits at one v; here is another
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    v = normal(*z.shape, seed=9).to(dtype)
    (g,) = torch.autograd.grad(z, leaf, v)
    replayed = captured.module(x, v)
    assert torch.equal(replayed[0], z)
    assert torch.equal(replayed[1], g)


def test_lines_are_told_by_folders_and_not_by_beginnings(monkeypatch, tmp_path):
    """A network in a folder `fperr_nets` beside fperr's own is the user's."""
    monkeypatch.setattr("fperr.exact.call_sites._FPERR", tmp_path / "net")
    source = "class Mine(nn.Module):\n    def forward(self, x):\n        return x.relu()\n"
    space = {"nn": nn}
    exec(compile(source, str(tmp_path / "nets" / "mine.py"), "exec"), space)
    model, x = space["Mine"](), torch.ones(1, 2)
    relu = "aten.relu.default"
    assert call_sites(model, x, with_lines=True)[relu] == ["Mine, mine.py:3"]
    assert call_sites(model, x, with_lines=False)[relu] == ["Mine"]


def test_the_halves_are_told_apart(fashion_standard, fashion):
    captured = exact.capture(fashion_standard, fashion.x[:1])
    forward, backward = (
        [str(n.target) for n in half] for half in (captured.forward, captured.backward)
    )
    assert forward.count("aten.convolution.default") == 2
    assert not any("backward" in name for name in forward)
    assert backward.count("aten.convolution_backward.default") == 2
    assert captured.depth == 4


def _in_place(parameter):
    with torch.no_grad():
        parameter.add_(1e-3)


def _through_data(parameter):
    parameter.data.mul_(1.001)


def _through_numpy(parameter):
    parameter.detach().numpy()[0] += 1


@pytest.mark.parametrize("change", [_in_place, _through_data, _through_numpy])
def test_weights_changed_after_the_capture_are_noticed(change):
    model = tiny_mlp()
    x = normal(1, 6)
    captured = exact.capture(model, x)
    interpreter = Interpreter(captured, MpArithmetic(64))
    run = interpreter.forward(x)
    v = interpreter.arithmetic.from_torch(normal(1, 4))
    change(model[0].bias)
    with pytest.raises(StaleCaptureError, match="changed in place after the network was captured"):
        interpreter.products(run.saved_values, v)
    with pytest.raises(StaleCaptureError, match="Capture it again"):
        interpreter.forward(x)


def test_buffers_count_too():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten()).eval()
    x = normal(1, 1, 3, 3)
    interpreter = Interpreter(exact.capture(model, x), MpArithmetic(64))
    model[1].running_var.add_(1)
    with pytest.raises(StaleCaptureError):
        interpreter.forward(x)


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


class Unequal(nn.Module):
    """Another network after a few calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1.0 if self.calls < 4 else 2.0)


def test_control_flow_that_depends_on_data_is_refused():
    with pytest.raises(ModelError, match="the model cannot be traced"):
        exact.capture(DataDependent().eval(), normal(1, 4))


def test_a_replay_that_differs_is_refused():
    model = Unequal().eval()
    x = normal(1, 4)
    captured = exact.capture(model, x)
    with pytest.raises(CaptureAuditError, match="differ from the eager run's at the same input"):
        captured.audit(model, x, probe(x))


def test_what_is_not_logits_is_refused():
    with pytest.raises(ModelError, match=r"logits of shape \(2, K\), got \(2, 3, 3\)"):
        exact.capture(nn.Identity(), normal(2, 3, 3))
    with pytest.raises(ModelError, match="the model fails on an input of shape"):
        exact.capture(nn.Linear(3, 2).eval(), normal(1, 4))


def test_one_sample_of_a_batch_is_that_sample(fashion_standard, fashion):
    x = fashion.x[:5]
    v = probe(fashion_standard(x))
    batch, single = exact.capture(fashion_standard, x), exact.capture(fashion_standard, x[:1])
    assert batch.is_like(single)
    interpreter = Interpreter(single, MpArithmetic(64))
    run = float_run(batch, x, v)
    for i in range(5):
        mine = interpreter.saved_values_of(run, i)
        alone = interpreter.saved_values_of(float_run(single, x[i : i + 1], v[i : i + 1]), 0)
        assert mine.same_as(alone, interpreter.arithmetic)
    assert not interpreter.saved_values_of(run, 0).same_as(
        interpreter.saved_values_of(run, 1), interpreter.arithmetic
    )


def test_splitting_a_batch():
    tensor = torch.arange(24).reshape(6, 4)
    assert sample_of(tensor, (2, 4), 1).tolist() == tensor[2:4].tolist()
    assert sample_of(tensor, (6, 4), 1) is tensor
    with pytest.raises(CaptureAuditError, match="does not split into samples"):
        sample_of(tensor, (2, 2), 0)


def test_the_gradient_certifies_its_bits_or_raises(monkeypatch):
    model, x, v = tiny_mlp(), normal(2, 6), normal(2, 4)
    found = exact.gradient(model, x, v, engine="mpmath", digits=31)
    assert found.bits == 103  # 31 digits
    assert found.log2_error <= -103
    theirs = torch.func.vjp(model, x)[1](v)[0].double()
    # two layers with sums of at most 8 terms
    assert float((found.to_torch() - theirs).norm() / theirs.norm()) < 2 * 8 * 2.0**-24
    monkeypatch.setattr("fperr.exact.gradient_rungs.GUARD_BITS", -40)  # fewer bits than are claimed
    with pytest.raises(ReferenceNotCertifiedError, match="bits only, 103 were asked for"):
        exact.gradient(model, x, v / 3, engine="mpmath", digits=31)


def test_arguments_of_the_gradient_are_checked():
    model, x, v = tiny_mlp(), normal(2, 6), normal(2, 4)
    with pytest.raises(ValueError, match="unknown engine 'quad': expected one of auto, float64"):
        exact.gradient(model, x, v, engine="quad")
    with pytest.raises(ValueError, match=r"v must be floating point of shape \(2, 4\)"):
        exact.gradient(model, x, v[:, :3], engine="ball")


def test_constants_of_the_model_may_be_plain_tensors():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.tensor([0.25])
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear((x - self.mean) / torch.tensor(0.5))

    model, x, v = Normalised().eval(), normal(1, 3), normal(1, 2)
    found = exact.gradient(model, x, v, engine="ball").to_torch()
    expected = v.double() @ model.linear.weight.detach().double() * 2
    # the products of 24-bit numbers are exact in float64, their sum of two is rounded once
    assert torch.allclose(found, expected, rtol=2.0**-52, atol=0)


def test_layers_are_named_after_modules():
    model, x = build("resnet"), torch.rand(1, 3, 8, 8)
    captured = exact.capture(model, x)
    forward = [captured.layer(n) for n in captured.forward]
    expected = ["0 (Conv2d)", "1 (BatchNorm2d)", "3.conv1", "3.bn1", "3.relu", "3.conv2"]
    assert [name for name in forward if name in expected] == expected
    assert {"3.downsample.0 (Conv2d)", "3.add", "3.relu (2)"} <= set(forward)
    # each operation of the backward half has the name of the one whose gradient it computes
    kinds = ("convolution_backward", "threshold_backward")
    assert [captured.layer(n) for n in captured.backward if n.name.startswith(kinds)] == [
        "3.relu (2)",
        "3.downsample.0 (Conv2d)",
        "3.conv2",
        "3.relu",
        "3.conv1",
        "2 (ReLU)",
        "0 (Conv2d)",
    ]
    sums = [captured.layer(n) for n in captured.backward if n.name.startswith("add")]
    assert sums == ["add_1"]  # of the gradients of two branches: no module's


def test_parts_of_attention_are_named_after_their_block():
    model = build("vit_sdpa")
    captured = exact.capture(model, torch.rand(1, 3, 8, 8))
    names = {captured.layer(n) for n in (*captured.forward, *captured.backward)}
    assert {"patches", "blocks.norm1", "blocks.attention.qkv", "blocks.attention.bmm (2)"} <= names
    assert {"blocks.mlp.1 (GELU)", "blocks.add (2)", "head"} <= names
