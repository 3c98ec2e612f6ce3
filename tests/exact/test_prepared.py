"""Prepared models: the same bits without captures and preparation, and every change is noticed."""

import numpy as np
import pytest
import torch
from torch import nn

from fperr import exact
from fperr.errors import StaleCaptureError
from fperr.exact.graph import Capture
from tests.conftest import normal, tiny_mlp
from tests.makers.networks import SIDE, build


@pytest.mark.parametrize("engine", ["float64", "double_word", "ball"])
def test_the_same_bits_as_without(engine, monkeypatch):
    model, x = build("lenet"), torch.rand(2, 3, SIDE, SIDE)
    v = normal(2, model(x).shape[1])
    plain = exact.gradient(model, x, v, engine=engine)
    prepared = exact.prepare(model)
    for _ in range(2):
        found = exact.gradient(prepared, x, v, engine=engine)
        assert torch.equal(found.to_torch(), plain.to_torch())
        assert found.log2_errors == plain.log2_errors
    # another shape of batch needs no other capture; nothing is captured any more
    monkeypatch.setattr("fperr.exact.prepared.capture", None)
    assert torch.equal(
        exact.gradient(prepared, x[1:], v[1:], engine=engine).to_torch(),
        exact_alone(model, x[1:], v[1:], engine, monkeypatch),
    )


def exact_alone(model, x, v, engine, monkeypatch):
    monkeypatch.undo()
    return exact.gradient(model, x, v, engine=engine).to_torch()


def data_mul(model):
    model[0].weight.data.mul_(1.5)


def through_numpy(model):
    np.asarray(model[0].weight.detach())[0, 0] += 1.0


def buffer(model):
    model.offset.add_(1.0)


def swapped(model):
    model[1] = nn.Tanh().eval()


def mode(model):
    model[1].train()


@pytest.mark.parametrize("change", [data_mul, through_numpy, buffer, swapped, mode])
def test_every_change_is_noticed_and_the_remedy_helps(change):
    model = tiny_mlp()
    model.register_buffer("offset", torch.zeros(3))
    x, v = normal(2, 6), normal(2, 4)
    prepared = exact.prepare(model)
    before = exact.gradient(prepared, x, v).to_torch()
    change(model)
    if change is mode:
        with pytest.raises(ValueError, match="training mode"):
            exact.gradient(prepared, x, v)
        return
    with pytest.raises(StaleCaptureError, match=r"prepare it again, with exact.prepare\(model\)"):
        exact.gradient(prepared, x, v)
    after = exact.gradient(exact.prepare(model), x, v).to_torch()
    assert torch.equal(after, exact.gradient(model, x, v).to_torch())
    assert torch.equal(after, before) == (change is buffer)  # which the network does not use


def test_each_shape_is_captured_once():
    prepared = exact.prepare(tiny_mlp())
    first = prepared.network_for(normal(2, 6))
    assert prepared.network_for(normal(5, 6)) is first
    assert isinstance(first.capture, Capture)
    assert first.double_words(106) is first.double_words(106)
    assert first.double_words(84, is_control=True) is not first.double_words(84)


@pytest.mark.parametrize(("engine", "most"), [("float64", 13), ("double_word", 28)])
def test_more_digits_than_an_engine_gives_are_refused_and_the_remedy_helps(engine, most):
    model, x, v = tiny_mlp(), normal(1, 6), normal(1, 4)
    with pytest.raises(ValueError, match=f"at most {most} digits.*digits={most + 1}.*'ball'"):
        exact.gradient(model, x, v, engine=engine, digits=most + 1)
    assert exact.gradient(model, x, v, engine="ball", digits=most + 1).certainty == ("proved",)
    exact.gradient(model, x, v, engine=engine, digits=most)
