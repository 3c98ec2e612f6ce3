"""Faults in the arguments of `measure`: raised at once, with what to do."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import fperr
from fperr.errors import FperrError, ModelError
from tests.conftest import normal, seeded, tiny_mlp

X = normal(3, 6)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class BatchNormalised(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Raising(nn.Module):
    def forward(self, x):
        raise RuntimeError(f"no {x.dtype} here")


def half_training():
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout()).eval()
    model[1].train()
    return model


def poisoned():
    model = tiny_mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model


# name: (model, x, options, text that the user sees)
CASES = {
    "not a module": (len, X, {}, "model must be a torch.nn.Module, got builtin_function_or_method"),
    "training": (tiny_mlp().train(), X, {}, "in training mode: call model.eval()"),
    "partly training": (half_training(), X, {}, "but 1 is in training mode: call model.eval()"),
    "NaN weights": (poisoned(), X, {}, "the model's 0.weight has NaN or infinite entries"),
    "K = 1": (seeded(nn.Linear(6, 1)), X, {}, "K = 1 logit, but at least 2 classes are needed"),
    "3-D logits": (nn.Identity().eval(), normal(2, 3, 4), {}, "got (2, 3, 4) for 2 samples"),
    "model raises": (Raising().eval(), X, {}, "the model fails on x[:3], of shape (3, 6)"),
    "wrong shape": (tiny_mlp(), normal(3, 5), {}, "the model fails on x[:3], of shape (3, 5)"),
    "mixed dtypes": (
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2).double()).eval(),
        X,
        {},
        "must have one dtype and one device, got ['torch.float32', 'torch.float64']",
    ),
    "a list": (tiny_mlp(), X.tolist(), {}, "x must be a tensor or a NumPy array, got list"),
    "integers": (tiny_mlp(), X.long(), {}, "got torch.int64: convert it, e.g. x.float() / 255"),
    "integer array": (tiny_mlp(), np.ones((2, 6), int), {}, "x must be floating point"),
    "empty": (tiny_mlp(), X[:0], {}, "at least one sample, got shape (0, 6)"),
    "no batch": (tiny_mlp(), X[0], {}, "add a batch dimension with x[None]"),
    "y too short": (tiny_mlp(), X, {"y": [0, 1]}, "y must have shape (3,)"),
    "y of floats": (
        tiny_mlp(),
        X,
        {"y": [0.0, 1.0, 2.0]},
        "integer class indices, got torch.float",
    ),
    "y out of range": (
        tiny_mlp(),
        X,
        {"y": [0, 1, 4]},
        "classes from 0 to 3, got values from 0 to 4",
    ),
    "y negative": (tiny_mlp(), X, {"y": [0, -1, 2]}, "got values from -1 to 2"),
    "y of booleans": (tiny_mlp(), X, {"y": [True] * 3}, "integer class indices, got torch.bool"),
    "target = y": (
        tiny_mlp(),
        X,
        {"y": [0, 1, 2], "targets": [1, 1, 1]},
        "targets equal y at sample 1 (class 1)",
    ),
    "loss": (tiny_mlp(), X, {"losses": ["hinge"]}, "unknown loss 'hinge': expected one of ce"),
    "loss as string": (tiny_mlp(), X, {"losses": "ce"}, "losses must be a sequence of names"),
    "no loss": (tiny_mlp(), X, {"losses": []}, "losses is empty: name at least one"),
    "loss twice": (tiny_mlp(), X, {"losses": ["ce", "ce"]}, "losses names something twice"),
    "format": (
        tiny_mlp(),
        X,
        {"formats": ["fp8"]},
        "unknown format 'fp8': expected one of float16",
    ),
    "scenario": (tiny_mlp(), X, {"scenarios": ["won"]}, "unknown scenario 'won': expected 'all'"),
    "observed, no label": (tiny_mlp(), X, {"scenarios": "observed"}, "needs y or target"),
    "all, with label": (
        tiny_mlp(),
        X,
        {"y": [0, 1, 2], "scenarios": "all"},
        "scenarios='all' assigns the labels, but y is given too",
    ),
    "dlr, K = 3": (
        tiny_mlp(classes=3),
        X,
        {"losses": ["dlr"]},
        "loss 'dlr' needs at least 4 classes here, the model has 3",
    ),
    "targeted dlr without y": (
        tiny_mlp(),
        X,
        {"losses": ["dlr"], "targets": [0, 0, 0]},
        "targeted 'dlr' needs the true label",
    ),
    "engine": (
        tiny_mlp(),
        X,
        {"engine": "arb"},
        "unknown engine 'arb': expected one of auto",
    ),
    "digits": (tiny_mlp(), X, {"digits": 15}, "digits must be at least 20"),
    "reduction": (
        tiny_mlp(),
        X,
        {"reduction": "max"},
        "expected one of sum, mean",
    ),
    "loss scale": (
        tiny_mlp(),
        X,
        {"loss_scale": -1.0},
        "loss_scale must be a finite number above 0, got -1.0",
    ),
    "batch size": (
        tiny_mlp(),
        X,
        {"batch_size": 0},
        "batch_size must be a whole number",
    ),
    "losses of numbers": (tiny_mlp(), X, {"losses": [1]}, "losses must hold names, got [1]"),
    "digits as text": (
        tiny_mlp(),
        X,
        {"digits": "50"},
        "digits must be a whole number",
    ),
    "autocast of float64": (
        tiny_mlp().double(),
        X.double(),
        {"autocast": True},
        "autocast=True needs a float32 model, got torch.float64",
    ),
    "random": (Noisy().eval(), X, {}, "two runs of the model on the same batch differ"),
    "batch": (BatchNormalised().eval(), X, {}, "the model depends on the batch"),
    "batch, one sample": (BatchNormalised().eval(), X[:1], {}, "the model depends on the batch"),
}


@pytest.mark.parametrize(("model", "x", "options", "text"), CASES.values(), ids=CASES)
def test_the_user_is_told(model, x, options, text):
    with pytest.raises((ValueError, TypeError, ModelError), match=re.escape(text)):
        fperr.measure(model, x, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tf32 is measured where there is CUDA")
def test_tf32_needs_cuda():
    with pytest.raises(ValueError, match="format 'tf32' exists on CUDA devices only"):
        fperr.measure(tiny_mlp(), X, formats=["tf32"])


def test_a_model_that_fails_in_half_precision_is_named():
    class Float32Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.other = torch.eye(6)

        def forward(self, x):
            return self.linear(x @ self.other)

    with pytest.raises(ModelError, match="in float16: the model fails on an input"):
        fperr.measure(Float32Only().eval(), X, formats=["float16"])
    # beside a format that works the rows of the others say so
    with pytest.warns(UserWarning, match="the network fails in a format"):
        frame = fperr.measure(Float32Only().eval(), X, progress=False).frame
    for format in ("float16", "float64"):
        reasons = set(frame["reason"][frame["format"] == format])
        assert len(reasons) == 1
        assert f"in {format}: the model fails on an input" in reasons.pop()
    assert frame["delta"][frame["format"] == "float32"].notna().all()


def test_errors_are_of_one_family():
    assert issubclass(ModelError, FperrError)
