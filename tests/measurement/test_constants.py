"""The stage `constants`: what a format's own arithmetic makes of operations on weights alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fperr
from fperr.gradient_error.stages import STAGES
from tests.conftest import Of, normal, seeded, tiny_mlp
from tests.makers.constants import NETWORKS, build

SHARES = [f"share_{name}" for name in STAGES]
QUIET = {"progress": False}


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_is_right_where_weights_are_computed_with(name):
    model, x = build(name), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    frame = fperr.measure(model, x, losses=["mifpe"], formats=["float64"], **QUIET).frame
    assert (frame["delta"] < 1e-14).all()
    assert (frame["stage_constants"] < 1e-14).all()
    assert set(frame["value_audit"]) == {"confirmed"}


def assert_shares_sum_to_1(frame):
    # five quotients of float64 vectors, the largest a few times the error itself
    assert ((frame[SHARES].sum(axis=1, skipna=False) - 1).abs() < 1e-12).all()


@pytest.mark.parametrize("engine", ["auto", "ball", "double_word", "mpmath"])
@pytest.mark.parametrize("fmt", ["float16", "float32"])
def test_the_stage_is_the_distance_of_the_formats_weights(fmt, engine):
    """A single layer under C&W: g = W^T v with v of 1, -1 and 0, whatever the logits."""
    model = seeded(parametrizations.weight_norm(nn.Linear(4, 3, dtype=torch.float16)))
    x, y = normal(2, 4).half(), torch.tensor([0, 0])
    frame = fperr.measure(
        model.float(), x.float(), y, losses=["cw"], formats=[fmt], engine=engine, **QUIET
    ).frame.set_index("sample")
    own = copy.deepcopy(model).to(getattr(torch, fmt)).weight.detach().double()
    true = copy.deepcopy(model).double().weight.detach()
    for sample, label in enumerate(y.tolist()):
        z = model(x[sample].float()).detach()
        z[label] = -torch.inf
        v = nn.functional.one_hot(z.argmax(), 3).double()
        v[label] = -1
        expected = float((v @ (own - true)).norm() / (v @ true).norm())
        # `true` is the exact network's, and three sums of float64 are off by a few roundings of W
        slack = 16 * 2.0**-53 / expected
        assert frame.loc[sample, "stage_constants"] == pytest.approx(expected, rel=slack, abs=0)
        assert expected > 1e-9
        assert frame.loc[sample, "stage_cast"] == 0
    assert_shares_sum_to_1(frame)


@pytest.mark.parametrize("name", ["weight norm", "old spectral norm", "StdConv"])
def test_all_stages_sum_to_the_error(name):
    model, x = build(name), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    options = {"losses": ["mifpe", "stable_ce"], "formats": ["float16", "bfloat16", "float32"]}
    frame = fperr.measure(model, x, **options, **QUIET).frame
    assert (frame["stage_constants"] > 0).all()
    assert_shares_sum_to_1(frame)
    half = frame[frame["format"] == "float16"]
    # the format's own arithmetic, and neither its weights nor the rest of the run
    assert (half["stage_constants"] > 2.0**-16).all()
    assert (half["stage_constants"] < 2.0**-6).all()


@pytest.mark.parametrize("model", [tiny_mlp(4, 3), build("embedding of positions")])
def test_the_stage_is_0_and_costs_nothing_without_such_operations(model, monkeypatch):
    ladders = []
    made = fperr.exact.engines.ladder.Ladder.of
    monkeypatch.setattr(
        "fperr.exact.engines.ladder.Ladder.of",
        lambda ladder, capture: ladders.append(capture) or made(ladder, capture),
    )
    formats = ["float16", "float32"]
    frame = fperr.measure(model, normal(2, 4), losses=["mifpe"], formats=formats, **QUIET).frame
    assert (frame["stage_constants"] == 0).all()
    assert (frame["share_constants"] == 0).all()
    assert len(ladders) == 1  # float16's cast network, and no other


def test_a_dtype_that_the_graph_writes_is_cast():
    """What is made from nothing is data: in a format that writes another dtype it is cast."""
    model = nn.Sequential(
        Of(lambda x: x * torch.arange(1, 5, dtype=x.dtype).sin()), seeded(nn.Linear(4, 3))
    ).eval()
    frame = fperr.measure(
        model, normal(2, 4), losses=["mifpe"], formats=["float32", "float64"], **QUIET
    ).frame
    double, single = (frame[frame["format"] == name] for name in ("float64", "float32"))
    assert (single["stage_cast"] == 0).all()
    assert ((double["stage_cast"] > 1e-10) & (double["stage_cast"] < 2.0**-22)).all()
    assert (double[["stage_forward", "stage_backward", "stage_loss"]] < 1e-14).all(axis=None)
    assert (frame["stage_constants"] == 0).all()


def test_constants_that_overflow_leave_their_stages_empty():
    model = nn.Sequential(seeded(nn.Linear(4, 3)), Scaled()).eval()
    frame = fperr.measure(
        model, normal(1, 4), losses=["cw"], formats=["float16", "float32"], **QUIET
    ).frame
    half, single = (frame[frame["format"] == name] for name in ("float16", "float32"))
    assert half[["stage_constants", "stage_forward"]].isna().all(axis=None)
    assert half["stage_cast"].notna().all()
    assert half["delta"].isna().all()
    assert single["stage_constants"].notna().all()


class Scaled(nn.Module):
    """A factor of 2.2e5, from a parameter that float16 holds."""

    def __init__(self):
        super().__init__()
        self.log_factor = nn.Parameter(torch.tensor(12.3))

    def forward(self, x):
        return x * self.log_factor.exp()


def test_the_trace_along_the_network_has_a_step_of_constants():
    model, x = build("weight norm"), normal(2, 4)
    y = model(x).argmax(1)
    frame = fperr.trace_layers(model, x, y, loss="mifpe", format="float16", **QUIET).frame
    halves = ["cast", "constants", "forward", "loss", "backward"]
    assert frame["half"].unique().tolist() == halves
    measured = fperr.measure(
        model, x, y, losses=["mifpe"], formats=["float16"], batch_size=1, engine="ball", **QUIET
    ).frame
    for half in ("cast", "constants"):
        step = frame[frame["half"] == half]["contribution"]
        assert np.allclose(step, measured[f"stage_{half}"], rtol=1e-12, atol=0)
    assert np.allclose(
        frame.groupby("sample")["delta_so_far"].last(), measured["delta"], rtol=1e-12, atol=0
    )
    assert (frame.groupby("sample")["share"].sum() - 1).abs().max() < 1e-12
    plain = fperr.trace_layers(tiny_mlp(4, 3), x, format="float16", **QUIET).frame
    assert "constants" not in set(plain["half"])


def test_the_page_and_the_figures_name_the_stage():
    model, x = build("weight norm"), normal(1, 4)
    report = fperr.measure(model, x, losses=["mifpe"], formats=["float16"], **QUIET)
    names = [text.get_text() for text in report.plot.stages().legends[0].get_texts()]
    assert names == ["cast", "constants", "forward", "loss", "backward"]
    plain = fperr.measure(tiny_mlp(4, 3), x, losses=["mifpe"], formats=["float16"], **QUIET)
    names = [text.get_text() for text in plain.plot.stages().legends[0].get_texts()]
    assert names == ["cast", "forward", "loss", "backward"]
    assert "constants 0, forward" in plain.to_html()
    page = report.to_html()
    assert "constants " in page
    assert "constants 0, forward" not in page
