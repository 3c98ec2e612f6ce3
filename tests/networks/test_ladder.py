"""The ladder: which rung a sample reaches, what is said of it, and what stops the climb."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import fperr
from fperr import exact, zoo
from fperr.errors import ReferenceNotCertifiedError, SlowReferenceWarning
from fperr.exact.engines.ball import BallEngine
from fperr.exact.engines.base import NoExactPoint
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.float64 import Float64Engine
from fperr.exact.precision import bits_for_delta, bits_of, certainty, digits_of, engines_from
from fperr.formats import FORMATS
from fperr.reasons import NOT_CERTIFIED, UnmeasuredWarning, tally
from tests.conftest import normal, seeded, tiny_mlp
from tests.makers.networks import NETWORKS, SIDE, build

ONE = {"scenarios": ["untargeted_unsuccessful"], "progress": False}


class Absorbed(nn.Module):
    """What float64 and float32 compute alike, and wrongly: x beside 2^110."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp(4)

    def forward(self, x):
        return self.inner((x + 2.0**110) - 2.0**110)


def refusing(monkeypatch, *engines):
    """Engines that settle no sample."""
    fault = ReferenceNotCertifiedError("refused by the test")
    for engine in engines:
        monkeypatch.setattr(engine, "states", lambda _, x: [NoExactPoint(fault)] * len(x))


def test_the_policy_of_bits():
    plain = {name: fmt for name, fmt in FORMATS.items() if fmt.emulation is None}
    needed = {name: bits_for_delta(fmt.unit_roundoff) for name, fmt in plain.items()}
    assert needed == {"float16": 25, "bfloat16": 22, "tf32": 25, "float32": 38, "float64": 67}
    assert [bits_of(d) for d in (1, 10, 20)] == [4, 34, 67]
    assert digits_of(67) == pytest.approx(20.17, abs=0.01)
    assert engines_from("double_word") == ("double_word", "ball")
    assert engines_from("mpmath") == ("mpmath", "ball")
    grades = [certainty(-38.0, bits, is_proved=p) for bits in (38, 39) for p in (True, False)]
    assert grades == ["proved", "agreed", "uncertified", "uncertified"]
    assert certainty(float("nan"), 4, is_proved=True) == "uncertified"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("engine", ["float64", "double_word"])
def test_each_rung_is_within_its_claim_of_balls(name, engine):
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    model = build(name)
    v = normal(2, model(x).shape[1], seed=2).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowReferenceWarning)
        found = exact.gradient(model, x, v, engine=engine)
    balls = exact.gradient(model, x, v, engine="ball", digits=40)
    apart = (found.to_torch() - balls.to_torch()).flatten(1).norm(dim=1)
    claims = torch.tensor(found.log2_errors).exp2() * balls.to_torch().flatten(1).norm(dim=1)
    # rounded to float64 here
    assert (apart <= claims * (1 + 1e-9) + 2.0**-52 * balls.to_torch().flatten(1).norm(dim=1)).all()


def test_what_fools_float64_climbs():
    model, x = Absorbed().double().eval(), normal(3, 4).double()
    frame = fperr.measure(model, x, formats=["float16"], losses=["ce"], **ONE).frame
    assert set(frame["certainty"]) == {"proved"}  # the gradient is 0 or that of pairs of float64
    balls = fperr.measure(model, x, formats=["float16"], losses=["ce"], engine="ball", **ONE).frame
    assert frame["delta"].tolist() == pytest.approx(balls["delta"].tolist(), rel=1e-4, nan_ok=True)


def test_a_rung_that_claims_too_much_is_found_out(monkeypatch):
    """Negative control of the comparison with balls: a leader that is off by 2^-20."""
    right = Float64Engine._states

    def wrong(self, pair, x):
        points = right(self, pair, x)
        off = 1 + 2.0**-20
        return [replace(p, map=replace(p.map, rows=p.map.rows * off)) for p in points]

    monkeypatch.setattr(Float64Engine, "_states", wrong)
    model, x = tiny_mlp(), normal(2, 6)
    options = {"formats": ["float32"], "losses": ["mifpe"], "jacobian": "rows", **ONE}
    found = fperr.measure(model, x, **options).frame["delta"]
    balls = fperr.measure(model, x, engine="ball", **options).frame["delta"]
    assert found.tolist() != pytest.approx(balls.tolist(), rel=1e-4)
    monkeypatch.undo()
    found = fperr.measure(model, x, **options).frame["delta"]
    assert found.tolist() == pytest.approx(balls.tolist(), rel=1e-4)


def test_samples_climb_one_rung_at_a_time(monkeypatch):
    refusing(monkeypatch, Float64Engine)
    report = fperr.measure(tiny_mlp(), normal(2, 6), formats=["float16"], losses=["ce"], **ONE)
    engine = next(iter(report.provenance.values()))["reference"]["engine"]
    assert engine == "pairs of float64, 63 bits for 2 of 2 samples"
    refusing(monkeypatch, DoubleWordEngine)
    report = fperr.measure(tiny_mlp(), normal(2, 6), formats=["float16"], losses=["ce"], **ONE)
    assert set(report.frame["certainty"]) == {"proved"}
    refusing(monkeypatch, BallEngine)
    with pytest.warns(UnmeasuredWarning, match="refused by the test"):
        report = fperr.measure(tiny_mlp(), normal(2, 6), formats=["float16"], losses=["ce"], **ONE)
    assert set(report.frame["certainty"]) == {"uncertified"}
    assert report.summary()[["proved", "agreed", "uncertified"]].iloc[0].tolist() == [0, 0, 2]


def test_balls_say_how_long_they_take_and_can_be_left_out(monkeypatch, tmp_path):
    refusing(monkeypatch, Float64Engine, DoubleWordEngine)
    options = {"formats": ["float16"], "losses": ["ce"], "out": tmp_path / "kept", **ONE}
    monkeypatch.setattr("fperr.exact.engines.cost._MOMENT", 0.0)
    with pytest.warns(SlowReferenceWarning, match=r"2 samples need balls, .*: about \d+ s"):
        alone = fperr.measure(tiny_mlp(), normal(2, 6), **{**options, "out": None}).frame
    monkeypatch.setattr("fperr.exact.engines.cost._MOMENT", 1e9)
    with pytest.warns(UnmeasuredWarning, match="max_seconds=1e-09 were over .*larger max_sec"):
        report = fperr.measure(tiny_mlp(), normal(2, 6), max_seconds=1e-9, **options)
    assert set(report.frame["certainty"]) == {"uncertified"}
    assert next(iter(report.provenance.values()))["time_is_up"]
    page = report.to_html()
    assert "The time limit was over" in page
    assert "images are missing" not in page
    # the remedy, in the same folder
    report = fperr.measure(tiny_mlp(), normal(2, 6), **options)
    assert report.frame.equals(alone)
    assert not next(iter(report.provenance.values()))["time_is_up"]
    (group,) = tally([f"{NOT_CERTIFIED}: balls were not computed, as max_seconds=1 were over"])
    assert "max_seconds" in group.remedy


def test_large_errors_need_fewer_bits():
    """A gradient that is lost in float32 is no better known by 38 bits than by 24."""
    model = zoo.load("fashion_saturated")
    x = fperr.data.fashion_mnist_1000().x[:4]
    frame = fperr.measure(model, x, formats=["float32"], losses=["ce", "mifpe"], **ONE).frame
    assert set(frame["certainty"]) == {"agreed"}
    large = frame["delta"] > 1e-3
    assert large.any()
    assert (frame["log2_reference_error"][~large] <= -37).all()
    balls = fperr.measure(
        model, x, formats=["float32"], losses=["ce", "mifpe"], engine="ball", **ONE
    )
    assert frame["delta"].to_numpy() == pytest.approx(balls.frame["delta"].to_numpy(), rel=1e-4)


def test_asked_for_digits_are_had_whatever_the_error():
    frame = fperr.measure(
        tiny_mlp(), normal(2, 6), formats=["float16"], losses=["ce"], digits=15, **ONE
    ).frame
    assert (frame["log2_reference_error"] <= -bits_of(15)).all()
    assert set(frame["certainty"]) == {"proved"}


def test_more_digits_than_an_engine_gives_are_refused():
    for engine, most in (("float64", 13), ("double_word", 24)):
        with pytest.raises(ValueError, match=f"engine='{engine}' gives at most {most} digits"):
            fperr.measure(tiny_mlp(), normal(1, 6), engine=engine, digits=most + 1,
                          formats=["float16"])  # fmt: skip
        fperr.measure(tiny_mlp(), normal(1, 6), engine="ball", digits=most + 1, losses=["ce"],
                      formats=["float16"], **ONE)  # fmt: skip


def test_an_exact_gradient_says_what_it_is():
    model, x, v = (
        seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))),
        normal(3, 6),
        normal(3, 4),
    )
    agreed = exact.gradient(model, x, v)
    assert agreed.certainty == ("agreed",) * 3
    assert isinstance(agreed.numbers, torch.Tensor)
    assert agreed.radius is None
    proved = exact.gradient(model, x, v, digits=20)
    assert proved.certainty == ("proved",) * 3
    assert proved.radius.shape == (3, 6)
    assert torch.allclose(agreed.to_torch(), proved.to_torch(), rtol=0, atol=1e-12)
    assert [float(n) for n in agreed.midpoint[0]] == agreed.to_torch()[0].tolist()
    # a double model asks for what float64's errors need
    assert exact.gradient(model.double(), x.double(), v).bits == 67
