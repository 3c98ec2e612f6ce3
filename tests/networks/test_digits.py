"""A reference that misses its digits goes on to balls at higher precision, whatever cancels."""

import pytest
import torch
from torch import nn

import fperr
from fperr import data, zoo
from fperr.errors import CaptureAuditError, UnsupportedOperationError
from fperr.exact import capture
from tests.conftest import normal, seeded, slow_except, tiny_mlp
from tests.makers.networks import KINDS, NETWORKS, SIDE, build

ONE_ROW = {"losses": ["ce"], "formats": ["float32"], "progress": False}


def cancelling(offset, seed=0):
    """Two classes with the same row of J ahead by `offset`: cross-entropy between them cancels."""
    model = seeded(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)), seed)
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
        model[2].bias[1] = model[2].bias[0] + 0.25
        model[2].bias[:2] += offset
    return model


@pytest.mark.parametrize("engine", ["ball", "double_word"])
@pytest.mark.parametrize("jacobian", ["rows", "products"])
@pytest.mark.parametrize("offset", [50.0, 200.0, 600.0])
def test_a_combination_that_cancels_is_raised(engine, jacobian, offset):
    x = normal(2, 6, seed=2)
    options = {"scenarios": ["untargeted_unsuccessful"], "jacobian": jacobian, **ONE_ROW}
    frame = fperr.measure(cancelling(offset), x, engine=engine, **options).frame
    assert frame["is_certified"].all()
    if engine == "ball":
        assert (frame["certainty"] == "proved").all()
    # what is left has a factor e^-offset, and float32 keeps nothing of it
    assert (frame["delta"] > 1e10).all()
    other = fperr.measure(cancelling(offset), x, engine="ball", digits=60, **options).frame
    assert frame["delta"].to_numpy() == pytest.approx(other["delta"].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("factor", [1e5, 1e7])
def test_margins_of_millions_are_certified(factor):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = zoo.load("fashion_standard")

        def forward(self, x):
            return factor * self.model(x)

    images = data.fashion_mnist_1000()
    for engine in ("double_word", "ball"):
        frame = fperr.measure(
            Scaled().eval(), images.x[:1], images.y[:1], engine=engine, **ONE_ROW
        ).frame
        assert frame["is_certified"].all()
        assert frame["is_dead"].all()
        assert frame["delta"].tolist() == [1.0]


def test_nothing_is_proved_beside_an_infinite_error(monkeypatch):
    """Where no precision helps: a gradient that is 0 by no rule of arithmetic."""

    class Hidden(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, 1)
            zero = torch.exp(a + b) - torch.exp(a) * torch.exp(b)
            return torch.cat([zero, 3 * zero - 1], 1)

    x = normal(2, 2, seed=3).double()
    with pytest.warns(UserWarning, match=r"rows were not measured"):
        frame = fperr.measure(
            Hidden().eval(), x, torch.tensor([0, 0]), engine="ball", progress=False
        ).frame
    assert frame["delta"].isna().all()
    assert set(frame["certainty"]) == {"uncertified"}
    assert frame["reason"].notna().all()


class Encoder(nn.Module):
    """A transformer with ten classes."""

    def __init__(self, width, layers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


@pytest.mark.filterwarnings("ignore:the graph for a batch:UserWarning")
@pytest.mark.parametrize("name", slow_except(NETWORKS, KINDS))
def test_the_defaults_measure_every_row(name):
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    frame = fperr.measure(build(name), x, torch.tensor([0, 1]), progress=False).frame
    assert frame["delta"].notna().all()
    assert frame["is_certified"].all()
    assert set(frame["value_audit"]) == {"confirmed"}


@pytest.mark.filterwarnings("ignore:the graph for a batch:UserWarning")
@pytest.mark.parametrize("engine", ["auto", "double_word"])
@pytest.mark.parametrize("jacobian", ["auto", "products"])
def test_a_transformer_of_ten_classes_is_measured(engine, jacobian):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(16, 1).eval()
    x = torch.rand(1, 5, 8, generator=torch.Generator().manual_seed(1))
    options = {"engine": engine, "jacobian": jacobian, "progress": False}
    frame = fperr.measure(model, x, torch.tensor([3]), **options).frame
    assert frame["delta"].notna().all()
    assert frame["is_certified"].all()


class WithMask(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.inner, self.value = tiny_mlp(), value
        self.register_buffer("away", torch.tensor([False, True, False, False]))

    def forward(self, x):
        return self.inner(x).masked_fill(self.away, self.value)


def test_a_format_that_fails_leaves_the_others_alone():
    """A mask of -1e9 does not fit into float16."""
    x, y = normal(3, 6), torch.tensor([0, 2, 3])
    with pytest.warns(UserWarning, match=r"the network fails in float16"):
        frame = fperr.measure(WithMask(-1e9).eval(), x, y, progress=False).frame
    failed = frame[frame["format"] == "float16"]
    assert failed["delta"].isna().all()
    assert failed["reason"].str.startswith("the network fails in float16: ").all()
    others = frame[frame["format"] != "float16"]
    alone = fperr.measure(
        WithMask(-1e9).eval(), x, y, formats=["float32", "float64"], progress=False
    ).frame
    columns = ["sample", "loss", "format", "delta", "reason"]
    assert others[columns].reset_index(drop=True).equals(alone[columns])
    with pytest.raises(fperr.errors.ModelError, match=r"in float16: the model fails"):
        fperr.measure(WithMask(-1e9).eval(), x, y, formats=["float16"], progress=False)


@pytest.mark.parametrize("kind", [CaptureAuditError, UnsupportedOperationError])
def test_a_format_whose_graph_is_refused_leaves_the_others_alone(monkeypatch, kind):
    def without_float16(model, x):
        if x.dtype == torch.float16:
            raise kind("planted")
        return capture(model, x)

    monkeypatch.setattr("fperr.networks.in_format.capture", without_float16)
    model, x = tiny_mlp(), normal(3, 6)
    with pytest.warns(UserWarning, match=r"the network fails in float16"):
        frame = fperr.measure(model, x, progress=False).frame
    is_failed = frame["format"] == "float16"
    assert frame[is_failed]["delta"].isna().all()
    assert set(frame[is_failed]["reason"]) == {"the network fails in float16: planted"}
    assert frame[~is_failed]["delta"].notna().all()
    with pytest.raises(kind, match="planted"):
        fperr.measure(model, x, formats=["float16"], progress=False)


CLASSES = {
    "all but one masked": (-torch.inf, 3, "all classes but one are masked"),
    "one undefined": (torch.nan, 1, "its exact logits are infinite or undefined|not be certified"),
    "one infinite": (torch.inf, 1, "its exact logits are infinite or undefined|not be certified"),
}


@pytest.mark.filterwarnings("ignore::fperr.reasons.UnmeasuredWarning")
@pytest.mark.parametrize(("value", "count", "reason"), CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("engine", ["mpmath", "ball", "double_word"])
@pytest.mark.parametrize("jacobian", ["rows", "products"])
def test_logits_that_leave_nothing_to_measure(value, count, reason, engine, jacobian):
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_mlp()

        def forward(self, x):
            z = self.inner(x)
            return torch.cat([z[:, : 4 - count], torch.full_like(z[:, :count], value)], 1)

    frame = fperr.measure(
        Filled().eval(), normal(2, 6), torch.tensor([0, 0]), losses=["ce", "tmifpe"],
        engine=engine, jacobian=jacobian, progress=False,
    ).frame  # fmt: skip
    assert frame["delta"].isna().all()
    assert frame["reason"].str.contains(reason).all()


@pytest.mark.parametrize("engine", ["mpmath", "ball", "double_word"])
def test_a_masked_class_is_as_good_as_one_that_is_not_there(engine):
    class Fewer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_mlp()

        def forward(self, x):
            return self.inner(x)[:, [0, 2, 3]]

    x, y = normal(3, 6), torch.tensor([0, 2, 3])
    losses = ["ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr", "tmifpe_shifted"]
    options = {"losses": losses, "engine": engine, "progress": False}
    masked = fperr.measure(WithMask(-torch.inf).eval(), x, y, **options).frame
    fewer = fperr.measure(Fewer().eval(), x, torch.tensor([0, 1, 2]), **options).frame
    # (DLR of the least of three classes is 1, whatever the logits: there the gradient is zero)
    assert masked["delta"].isna().to_list() == fewer["delta"].isna().to_list()
    assert masked["delta"].notna().mean() > 0.9
    assert masked["margin"].to_list() == fewer["margin"].to_list()
    assert set(masked["value_audit"]) == {"confirmed"}
    # a loss adds exact zeros, in an order of its own: its rounding may be another one
    assert masked["T"].to_numpy() == pytest.approx(fewer["T"].to_numpy(), rel=1e-6, nan_ok=True)
    both = masked["delta"].notna()
    assert (masked["delta"] < 100 * fewer["delta"] + 1e-17)[both].all()
    bounded = masked["logit_delta_bound"].notna()
    assert bounded.sum() == fewer["logit_delta_bound"].notna().sum() > 0
