"""Flips of ReLUs and poolings, frozen routing, products on demand, and the error by operation."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import exact, zoo
from fperr.errors import CaptureAuditError, SlowReferenceWarning
from fperr.exact import Interpreter, MpArithmetic
from fperr.exact.branches import branches_of, corresponding, flips
from fperr.exact.interpreter import SavedValues
from fperr.exact.precision import BITS_OF_DELTA
from tests.conftest import integers, normal, seeded, tiny_mlp
from tests.makers.networks import build

ALONE = {"losses": ["stable_ce"], "progress": False}


class OnTheEdge(nn.Module):
    """One pooling window whose two largest entries are one float32 apart: float16 ties them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x):
        return self.linear(F.max_pool2d(x, 2).flatten(1))


def edge():
    model = OnTheEdge()
    with torch.no_grad():
        # exact in float16, so that rounding the weights plays no part
        model.linear.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.25, -1.0]]))
        model.linear.bias.zero_()
    x = torch.tensor([[[[0.5, 0.5 + 2.0**-20], [0.125, 0.25]], [[0.75, 0.5], [0.25, 0.0]]]])
    return model.eval(), x


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_a_window_on_the_edge_flips_and_frozen_routing_removes_the_jump(engine):
    model, x = edge()
    frame = fperr.measure(model, x, engine=engine, **ALONE).frame.set_index("format")
    half = frame.loc["float16"]
    assert (half["pooling_flips"] == 1).all()
    assert (half["activation_flips"] == 0).all()
    assert (half["tie_flips"] == 0).all()
    assert json.loads(half["flips_by_layer"].iloc[0]) == {"max_pool2d_with_indices": [1, 0]}
    # the gradient of the first channel arrives at another pixel
    assert (half["delta"] > 0.3).all()
    # a handful of roundings of half precision
    assert (half["delta_frozen"] < 20 * 2.0**-11).all()
    for name in ("float32", "float64"):
        assert (frame.loc[name, "pooling_flips"] == 0).all()
        assert (frame.loc[name, "delta_frozen"] == frame.loc[name, "delta"]).all()


def test_a_relu_on_the_edge_flips():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 0.5], [-2.0, 1.0]]))
        model[2].bias.zero_()
    x = torch.tensor([[0.5 + 2.0**-20, 0.5]])
    frame = fperr.measure(model, x, **ALONE).frame.set_index("format")
    half = frame.loc["float16"]
    assert (half["activation_flips"] == 1).all()
    assert (half["delta"] > 0.3).all()
    assert (half["delta_frozen"] < 20 * 2.0**-11).all()


def test_flips_at_exact_ties_are_counted_apart():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    x = torch.tensor([[[[2.0, 2.0, 0.0, -1.0], [1.0, 0.5, 0.25, 0.125]]]])
    A = MpArithmetic(64)
    capture = exact.capture(model, x)
    run = Interpreter(capture, A).forward(x)
    decisions = branches_of(capture, run, A)
    assert [d.kind for d in decisions] == ["pooling", "activation"]
    keys = corresponding(decisions, capture)
    assert flips(decisions, run.saved_values, keys)[0].flips == 0
    pooling, activation = decisions
    assert pooling.outcome.tolist() == [[0, 6]]
    other = dict(run.saved_values.values)
    other[pooling.key] = np.array([1, 7])  # the tied one of the first window; not the largest
    mask = activation.outcome.copy().reshape(-1)
    mask[[2, 7]] = [True, False]  # a number exactly on the kink; one beyond it
    other[activation.key] = mask.reshape(activation.outcome.shape)
    found = flips(decisions, SavedValues(other), keys)
    assert [(f.decisions, f.flips, f.tie_flips) for f in found] == [(2, 1, 1), (8, 1, 1)]


def test_frozen_routing_with_other_activations():
    """Stand-ins decide as they should: with the format's own decisions nothing changes."""
    model = seeded(
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1), nn.AdaptiveMaxPool2d(3), nn.Hardtanh(-0.2, 0.4),
            nn.Flatten(), nn.Linear(27, 6), nn.ReLU6(), nn.Linear(6, 3),
        )
    )  # fmt: skip
    x = normal(5, 1, 8, 8)
    report = fperr.measure(model, x, **ALONE, formats=["bfloat16", "float32"])
    frame = report.frame
    flipped = (frame["activation_flips"] + frame["pooling_flips"]) > 0
    assert flipped.any()
    assert (~flipped).any()
    assert (frame.loc[~flipped, "delta_frozen"] == frame.loc[~flipped, "delta"]).all()
    # bfloat16 through five roundings of at most 27 terms: a flip would show above that
    assert (frame["delta_frozen"] < 5 * 27 * 2.0**-8).all()
    assert frame.loc[flipped, "delta"].median() > frame.loc[flipped, "delta_frozen"].median()


@pytest.mark.parametrize(
    ("engine", "network"),
    [
        *(("double_word", "vit_sdpa"), ("ball", "lenet"), ("mpmath", "lenet")),
        pytest.param("ball", "vit_sdpa", marks=pytest.mark.slow),
        pytest.param("mpmath", "vit_sdpa", marks=pytest.mark.slow),
    ],
)
def test_products_give_the_report_that_rows_give(engine, network):
    model, x = build(network), torch.rand(2, 3, 8, 8)
    options = {"losses": ["ce", "tmifpe", "dlr"], "formats": ["float16", "float64"]}
    options["digits"] = 20 if engine == "double_word" else 50
    rows, products = (
        fperr.measure(model, x, jacobian=mode, engine=engine, **options).frame
        for mode in ("rows", "products")
    )
    for name in rows.columns:
        if name == "stage_loss_bound":  # it takes the rows' norms
            assert products[name].isna().all()
        elif rows[name].dtype != "float64":
            assert rows[name].equals(products[name]), name
        elif name != "log2_reference_error":
            # stages that are differences of nearly equal vectors at 50 digits (30 in pairs),
            # and row norms of float64: 1e-12 covers 4 classes and 14 layers of roundings
            least = 1e-28 if engine == "double_word" else 1e-40
            close = np.isclose(rows[name], products[name], 1e-12, least, equal_nan=True)
            assert close.all(), name


def test_large_numbers_of_classes_take_products():
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(9, 60)))
    report = fperr.measure(model, normal(2, 1, 3, 3), losses=["mifpe"], formats=["float32"])
    assert report.provenance["Sequential"]["settings"]["jacobian"] == "products"
    few = fperr.measure(tiny_mlp(), normal(1, 6))
    assert few.provenance["Sequential"]["settings"]["jacobian"] == "rows"


def test_an_interval_for_delta_is_proved():
    model, x = build("resnet"), torch.rand(3, 3, 8, 8)
    options = {"losses": ["ce", "mifpe"], "loss_scale": 3.0, "reduction": "mean"}
    report = fperr.measure(model, x, certify=True, **options)
    frame = report.frame
    assert frame["delta"].between(frame["delta_lo"], frame["delta_hi"]).all()
    assert (frame["delta_hi"] - frame["delta_lo"] < 0.01 * frame["delta"]).all()
    # the same number by mpmath, which float64 rounds a few times
    other = fperr.measure(model, x, engine="mpmath", **options).frame
    slack = 1 + 2.0**-48
    assert (frame["delta_lo"] <= other["delta"] * slack).all()
    assert (other["delta"] <= frame["delta_hi"] * slack).all()
    assert other["delta_lo"].isna().all()
    assert report.provenance["ResNet"]["reference"]["engine"].startswith("Arb balls")


def test_each_format_starts_at_the_rung_that_it_needs():
    """float64 among the formats does not send float16's reference up."""
    model, x = zoo.load("fashion_standard"), torch.rand(1, 1, 28, 28)
    report = fperr.measure(model, x, formats=["float16", "float64"], losses=["ce", "mifpe"])
    grades = report.frame.groupby("format")["certainty"].unique()
    assert {name: list(found) for name, found in grades.items()} == {
        "float16": ["agreed"],
        "float64": ["proved"],
    }
    alone = fperr.measure(model, x, formats=["float16"], losses=["ce", "mifpe"]).frame
    both = report.frame[report.frame["format"] == "float16"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)
    used = next(iter(report.provenance.values()))["reference"]
    assert used["engine"].endswith("pairs of float64, 106 bits for 1 of 1 samples")
    assert used["engines"] == ["float64", "double_word", "ball"]
    named = fperr.measure(model, x, engine="ball", **ALONE).frame
    assert set(named["certainty"]) == {"proved"}


class Interleaved(nn.Module):
    """Tokens first, as attention does it inside: a flat tensor then mixes the samples."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        tokens = x.transpose(0, 1).reshape(-1, 3)
        return F.gelu(self.linear(tokens)).reshape(4, -1, 3).sum(0)


def test_a_batch_that_does_not_split_is_refused():
    model, x = seeded(Interleaved()), normal(3, 4, 3)
    with pytest.raises(CaptureAuditError, match=r"does not split into samples.*batch_size=1"):
        fperr.measure(model, x)
    frame = fperr.measure(model, x, batch_size=1, losses=["mifpe"], formats=["float64"]).frame
    assert (frame["delta"] < 1e-13).all()


def test_the_error_by_operation_sums_to_the_whole():
    model, x = build("vgg_bn"), torch.rand(2, 3, 8, 8)
    y = model(x).argmax(1)
    report = fperr.trace_layers(model, x, y, loss="mifpe", format="bfloat16")
    frame = report.frame
    assert (frame.groupby("sample")["share"].sum() - 1).abs().max() < 1e-12
    last = frame.groupby("sample").last()
    one = fperr.measure(
        model, x, y, losses=["mifpe"], formats=["bfloat16"], batch_size=1, jacobian="rows"
    ).frame.set_index("sample")
    assert np.allclose(last["delta_so_far"], one["delta"], rtol=1e-12, atol=0)
    halves = frame["half"].unique().tolist()
    assert halves == ["cast", "forward", "loss", "backward"]
    assert {"convolution", "native_batch_norm", "addmm"} <= set(frame["operation"])
    # the stages of the same gradient are sums of the same vectors
    cast = frame[frame["half"] == "cast"].set_index("sample")["contribution"]
    assert np.allclose(cast, one["stage_cast"], rtol=1e-12, atol=0)
    assert report.plot.relative_error().axes


def test_no_operation_errs_where_nothing_rounds():
    model = integers(nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    x = torch.randint(-3, 4, (1, 1, 3, 3), generator=torch.Generator().manual_seed(3)).double()
    frame = fperr.trace_layers(model.double(), x, loss="cw", format="float64").frame
    assert frame["layer"].tolist() == ["cast", "1 (ReLU)", "loss"]
    assert (frame["contribution"] == 0).all()
    assert frame["bits_left"].isna().all()


def test_an_error_planted_in_one_operation_is_found_there(monkeypatch):
    """The format's convolution is spoiled; the trace must name it, and the one after it."""
    model, x = build("lenet").double(), torch.rand(1, 3, 8, 8).double()
    honest = fperr.trace_layers(model, x, loss="mifpe", format="float64").frame

    def spoiled(capture, x, v, *, everything=False):
        run = exact.saved_values.float_run(capture, x, v, everything=everything)
        run.values["addmm"].mul_(1.001)
        return run

    monkeypatch.setattr("fperr.measurement.layer_tracer.float_run", spoiled)
    frame = fperr.trace_layers(model, x, loss="mifpe", format="float64").frame
    assert honest["contribution"].max() < 1e-13
    planted = frame[frame["contribution"] > 1e-6]["layer"].tolist()
    assert planted[0] == "7 (Linear)"
    assert set(planted) <= {"7 (Linear)", "8 (ReLU)", "9 (Linear)", "loss"} | set(
        frame.loc[frame["half"] == "backward", "layer"]
    )
    before = frame.loc[: frame.index[frame["layer"] == "7 (Linear)"][0] - 1, "contribution"]
    assert before.max() < 1e-13


@pytest.mark.parametrize(("name", "form"), [("lenet", "float16"), ("vgg_bn", "float64")])
def test_pairs_and_balls_give_the_same_trace(name, form, monkeypatch):
    model, x = build(name), torch.rand(1, 3, 8, 8)

    def traced():
        return fperr.trace_layers(model, x, loss="mifpe", format=form, progress=False).frame

    with monkeypatch.context() as patch:
        patch.setattr("fperr.exact.engines.replays.AdaptivePrecision", None)  # no ball is needed
        pairs = traced()
    monkeypatch.setattr("fperr.exact.engines.replays._PairReplays", None)
    monkeypatch.setattr("fperr.exact.engines.replays.MOST_BITS", {"double_word": 0})
    balls = traced()
    assert (pairs["layer"].tolist(), pairs["flips"].tolist()) == (
        balls["layer"].tolist(),
        balls["flips"].tolist(),
    )
    # every gradient is off by less than 2^-(bits + 10) of its norm, and each step has two of them
    off = 4 * 2.0 ** (-BITS_OF_DELTA - 10) * torch.finfo(getattr(torch, form)).eps / 2
    assert (pairs["contribution"] - balls["contribution"]).abs().max() <= off
    assert balls["contribution"].max() > 1000 * off


def test_a_trace_goes_to_balls_where_pairs_prove_too_little(monkeypatch):
    """Pairs that lose their bits, as in deep networks, change nothing but the time."""
    model, x = build("lenet"), torch.rand(1, 3, 8, 8)
    honest = fperr.trace_layers(model, x, loss="mifpe", progress=False).frame
    monkeypatch.setattr("fperr.exact.engines.replays.log2_relative_errors", lambda _: -20.0)
    monkeypatch.setattr("fperr.exact.engines.cost._MOMENT", 0.0)
    with pytest.warns(SlowReferenceWarning, match=r"1 sample needs balls.* Trace fewer samples"):
        fallen = fperr.trace_layers(model, x, loss="mifpe", progress=False).frame
    assert fallen["layer"].tolist() == honest["layer"].tolist()


def test_a_trace_takes_targets_and_refuses_nonsense():
    model, x = tiny_mlp(), normal(2, 6)
    targeted = fperr.trace_layers(model, x, targets=torch.tensor([1, 2]), loss="ce")
    assert targeted.frame["sample"].nunique() == 2
    assert math.isfinite(targeted.frame["contribution"].max())
    assert "ce in float32" in repr(targeted)
    with pytest.raises(ValueError, match="unknown"):
        fperr.trace_layers(model, x, loss="hinge")


def test_a_format_does_not_depend_on_the_others_in_the_call():
    """Constants that each format computes for itself: here a weight norm."""

    class WeightNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(4, 6, seed=5))

        def forward(self, x):
            w = self.weight
            return F.gelu(x @ (w * torch.rsqrt((w * w).sum(1, keepdim=True))).mT)

    model, x = WeightNorm().eval(), normal(2, 6)
    options = {"losses": ["mifpe"], "progress": False}
    alone = fperr.measure(model, x, formats=["float64"], **options).frame
    for order in (["float32", "float64"], ["float64", "float32"]):
        frame = fperr.measure(model, x, formats=order, **options).frame
        both = frame[frame["format"] == "float64"].reset_index(drop=True)
        for name in alone.columns:
            assert alone[name].equals(both[name]), name
    assert (alone["stage_backward"] < 1e-14).all()


def test_ties_at_both_ends_of_a_clipped_activation():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU6(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    x = torch.tensor([[0.0, 6.0, 3.0]])
    A = MpArithmetic(64)
    capture = exact.capture(model, x)
    (decisions,) = branches_of(capture, Interpreter(capture, A).forward(x), A)
    assert decisions.values.tolist() == [[True, True, False]]


def test_transformers_run_one_by_one_where_a_batch_is_computed_differently():
    model, x = build("vit_mha"), torch.rand(3, 3, 8, 8)
    asking = [p.requires_grad for p in model.parameters()]
    options = {"losses": ["mifpe"], "formats": ["float32"], "progress": False}
    with pytest.warns(UserWarning, match="the samples are run one by one, as batch_size=1 does"):
        report = fperr.measure(model, x, **options)
    assert report.provenance["ViT"]["settings"]["batch_size"] == 1
    assert (report.frame["delta"] < 1e-4).all()
    with pytest.raises(CaptureAuditError, match="use batch_size=1"):
        fperr.measure(model, x, batch_size=3, **options)
    assert [p.requires_grad for p in model.parameters()] == asking


def test_products_with_a_cast_inside_the_network():
    class Cast(nn.Module):
        def forward(self, x):
            return x.half().float()

    model = nn.Sequential(Cast(), nn.Flatten(), seeded(nn.Linear(9, 6))).eval()
    options = {"losses": ["mifpe"], "formats": ["float32"], "progress": False}
    frame = fperr.measure(model, torch.rand(1, 1, 3, 3), jacobian="products", **options).frame
    assert frame["common_mode_factor"].notna().all()


@pytest.mark.slow
def test_the_trace_ends_at_the_error_that_measure_finds():
    losses = ["ce", "mifpe", "stable_ce"]
    for name, samples in (("lenet", 2), ("vit_by_hand", 1)):
        model, x = build(name), torch.rand(samples, 3, 8, 8)
        y = model(x).argmax(1)
        measured = fperr.measure(
            model, x, y, losses=losses, formats=["float64"], batch_size=1, progress=False
        ).frame
        for loss in losses:
            trace = fperr.trace_layers(model, x, y, loss=loss, format="float64").frame
            one = measured[measured["loss"] == loss]
            last = trace.groupby("sample")["delta_so_far"].last()
            assert np.allclose(last, one["delta"], rtol=1e-10, atol=0)


def test_a_trace_checks_what_it_is_given():
    model, x = build("lenet"), torch.rand(2, 3, 8, 8)
    assert fperr.trace_layers(model.double(), x).frame["sample"].nunique() == 2
    broken = x.clone()
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"x is not finite at samples \[1\]"):
        fperr.trace_layers(model, broken)
    with torch.no_grad():
        model.float()[0].weight.mul_(2.0**17)
    uneven = torch.cat([x[:1] * 2.0**-17, 16 * x[1:]])
    with pytest.warns(UserWarning, match="sample 1 overflows in float16"):
        report = fperr.trace_layers(model, uneven, format="float16")
    assert report.frame["sample"].unique().tolist() == [0]


def test_numbers_beyond_every_exponent():
    """Logits of 1e25: v of cross-entropy is e^-1e25."""
    model = tiny_mlp().double()
    with torch.no_grad():
        model[2].weight.mul_(1e25)
    frame = fperr.measure(model, normal(2, 6), losses=["ce", "mifpe:T=1e300"]).frame
    assert len(frame) == 2 * 4 * 2 * 3
