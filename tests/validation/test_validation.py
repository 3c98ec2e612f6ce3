"""The sweep of exp and log, the command line of the validation, and its pictures."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

import fperr
from fperr import data, formats, zoo
from fperr.bounds import kernels
from fperr.bounds.kernels import DOCUMENTED
from fperr.cli import app
from fperr.errors import FperrError
from fperr.validation import assumption, falsify, kernel_sweep, summary, sweep
from tests.conftest import normal, seeded, tiny_mlp

RUN = CliRunner()
STRIDE = 4096


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_coarse_sweep_stays_within_what_is_documented():
    found, results = sweep(stride=STRIDE)
    assert 0.5 < found["float32"].exp_ulps <= 1.01
    assert 0.5 < found["float32"].log_ulps <= 1.01
    assert not found["float32"].is_exhaustive
    assert found["float64"].exp_ulps == 1.0
    assert "sample" in found["float64"].source
    routes = {result.route for result in results}
    assert {"contiguous", "strided", "log_softmax backward, tail", "log_softmax forward"} <= routes


def test_a_worse_exp_is_found(monkeypatch):
    module = kernel_sweep
    worse = {**module._EXP, "contiguous": lambda x: torch.exp(x) * (1 + 2.0**-22)}
    monkeypatch.setattr(module, "_EXP", worse)
    with pytest.raises(FperrError, match="expected 1"):  # it exceeds 1 near 0
        sweep(stride=STRIDE)
    bent = {
        **module._EXP,
        "contiguous": lambda x: torch.exp(torch.where(x < -1, x * (1 + 2.0**-22), x)),
    }
    monkeypatch.setattr(module, "_EXP", bent)
    assert sweep(stride=STRIDE)[0]["float32"].exp_ulps > 5


def test_a_worse_float64_log_is_refused(monkeypatch):
    module = kernel_sweep
    log = torch.log
    monkeypatch.setattr(
        module.torch,
        "log",
        lambda x: log(x) * (1 + 2.0**-51) if x.dtype == torch.float64 else log(x),
    )
    with pytest.raises(FperrError, match="more than the documented"):
        sweep(stride=STRIDE)


def test_certificates_are_kept_for_torch_and_device(tmp_path):
    cpu = torch.device("cpu")
    assert kernels.accuracy(formats.FLOAT16, cpu) == DOCUMENTED
    found, _ = sweep(stride=STRIDE)
    file = kernels.keep(found, cpu)
    assert file == kernels.certificate_file(cpu)
    assert torch.__version__ in file.name
    assert kernels.accuracy(formats.FLOAT16, cpu) == found["float32"]
    assert kernels.accuracy(formats.FLOAT64, cpu) == found["float64"]
    assert json.loads(file.read_text())["float32"]["is_exhaustive"] is False


def test_validate_kernels_from_the_command_line(tmp_path):
    result = RUN.invoke(app.app, ["validate", "kernels", "--stride", str(STRIDE)])
    assert result.exit_code == 0, result.output
    assert "log_softmax backward, vectors" in result.output
    assert "Kept" not in result.output  # only an exhaustive one is worth keeping


def test_validate_bounds_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.delenv("FPERR_DATA", raising=False)
    out = tmp_path / "bounds"
    asked = [
        "validate",
        "bounds",
        "--cases",
        "600",
        "--formats",
        "float16,float32",
        "--out",
        str(out),
    ]
    result = RUN.invoke(app.app, asked)
    assert result.exit_code == 0, result.output
    assert "0 violations of the proved bound" in result.output
    table = pd.read_csv(out / "bounds.csv")
    assert set(table["format"]) == {"float16", "float32"}
    assert table["bound"].nunique() == 5
    assert (out / "bounds.png").stat().st_size > 10_000


def test_a_violation_ends_with_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(
        kernels,
        "DOCUMENTED",
        kernels.Accuracy(0.0, 0.0, 1e9, False, "a control: exact exp and log"),
    )
    weak = kernels.Kernel("weak", add=0.0, exp=0.0, log=0.0, output=0.0)
    monkeypatch.setitem(kernels.KERNELS, "weak", weak)
    out = tmp_path / "bounds"
    asked = ["validate", "bounds", "--cases", "300", "--formats", "float32", "--kernel", "weak"]
    result = RUN.invoke(app.app, [*asked, "--out", str(out)])
    assert isinstance(result.exception, FperrError)
    assert (out / "bounds.csv").is_file()


def test_the_figure_draws_what_was_tried():
    trials = falsify(["float32"], 600, accuracy=DOCUMENTED)
    left, right = summary.figure(trials).axes
    for axis, column in ((left, "normwise"), (right, "paper_u")):
        line = axis.get_lines()[0]
        drawn = np.sort(trials[column].clip(1e-6, 1e6).to_numpy())
        assert np.allclose(np.asarray(line.get_xdata())[1:], drawn, 1e-13, 0)  # 10 to the log10
    assert "0.00%" in left.get_title()
    assert f"{(trials['paper_u'] > 1).mean():.2%}" in right.get_title()


def test_the_assumption_holds_for_a_network_made_so():
    """Rows of J that are orthogonal and of one length: alike, but not in direction."""
    model = torch.nn.Linear(4, 4, bias=True)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.bias.copy_(torch.tensor([3.0, 1.0, 0.0, -1.0]))
    by_rank, by_T = assumption.lengths(model, torch.zeros(2, 4))
    assert np.allclose(by_rank["length"], 1.0, 2.0**-40, 0)
    assert np.allclose(by_rank.loc[by_rank["rank"] > 2, "cosine"], 0.5, 2.0**-40, 0)
    first = by_T[by_T["sample"] == 0]
    c = first["T"].to_numpy() / 2.0
    p = np.exp(c[:, None] * np.array([3.0, 1.0, 0.0, -1.0]))
    p /= p.sum(1, keepdims=True)
    rest = p[:, 1:].sum(1)
    g = np.sqrt(rest**2 + (p[:, 1:] ** 2).sum(1)) / rest
    ratio = first["ratio"].to_numpy()
    assert np.allclose(ratio / ratio[0], g / g[0], 2.0**-40, 0)
    assert (by_T["log2_G"] <= 1e-9).all()


def test_the_assumption_from_the_command_line(tmp_path):
    asked = ["validate", "assumption", "fashion_standard", "--n", "3", "--out", str(tmp_path / "a")]
    result = RUN.invoke(app.app, asked)
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "a" / "assumption.csv")
    assert found["longest/shortest"][0] > 1
    ranks, ratios = assumption.figure(
        {"x": assumption.lengths(tiny_mlp(classes=5), normal(3, 6))}
    ).axes
    assert len(ranks.get_xticklabels()) == 4
    assert len(ratios.get_lines()[0].get_xdata()) == 60


LOSSES = ["ce", "mifpe", "tmifpe", "mifpe_shifted", "pmifpe", "mifpe:T=8", "stable_ce", "cw"]
FORMATS = ["float16", "bfloat16", "float32", "float64"]


def assert_bounded(frame):
    """Every measured error of the loss stage and of the logit gradient is within its bound."""
    bounded = frame[~frame["loss"].isin(["cw", "dlr"]) & frame["logit_delta"].notna()]
    assert bounded["logit_delta_bound"].notna().all()
    assert (bounded["logit_delta"] <= bounded["logit_delta_bound"] * (1 + 1e-9)).all()
    stage = bounded[bounded["stage_loss"].notna()]
    assert stage["stage_loss_bound"].notna().all()
    assert (stage["stage_loss"] <= stage["stage_loss_bound"] * (1 + 1e-9)).all()
    assert frame.loc[frame["loss"] == "cw", "logit_delta_bound"].isna().all()
    return stage


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fashion_saturated",
        pytest.param("fashion_standard", marks=pytest.mark.slow),
        pytest.param("fashion_adversarial", marks=pytest.mark.slow),
    ],
)
def test_the_loss_stage_is_bounded_on_packaged_networks(name):
    model, x = zoo.load(name), data.fashion_mnist_1000().x[:12]
    found = fperr.measure(model, x, losses=LOSSES, formats=FORMATS, scenarios="all").frame
    stage = assert_bounded(found)
    assert len(stage) > 1000
    # the bound is no giveaway: a hundredth of it is exceeded
    assert (stage["stage_loss"] > stage["stage_loss_bound"] / 100).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mnist_fastat_pgd", pytest.param("mnist_levelsets_eps0.4", marks=pytest.mark.slow)]
)
def test_the_loss_stage_is_bounded_on_published_networks(name, fperr_data):
    x = data.mnist_test().first(6).x
    found = fperr.measure(zoo.load(name), x, losses=LOSSES, formats=FORMATS, scenarios="all").frame
    assert len(assert_bounded(found)) > 400


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean"},
        {"loss_scale": 1024.0},
        {"loss_scale": 3.0},
        {"reduction": "mean", "loss_scale": 1 / 3},
    ],
)
def test_the_bound_knows_means_and_loss_scales(options):
    model, x = seeded(tiny_mlp()), normal(5, 6)
    found = fperr.measure(model, x, losses=LOSSES, formats=FORMATS, scenarios="all", **options)
    assert_bounded(found.frame)


def test_the_scatter_shows_every_bounded_row():
    found = fperr.measure(tiny_mlp(), normal(4, 6), losses=["ce", "cw"], formats=["float32"])
    figure = found.plot.bounds()
    rows = found.frame[found.frame["stage_loss_bound"].notna() & ~found.frame["is_sign_twin"]]
    points = figure.axes[0].collections[0].get_offsets()
    assert np.array_equal(points[:, 0], rows["stage_loss_bound"].clip(1e-20, 1e4))
    assert np.array_equal(points[:, 1], rows["stage_loss"].clip(1e-20, 1e4))
    assert "0 of" in figure.axes[0].get_title()
    assert "What the loss can do at worst" in found.to_html()
    FigureCanvasAgg(figure).draw()
    title, legend = figure._suptitle.get_window_extent(), figure.legends[0].get_window_extent()
    # one panel, as on the page: nothing is clipped, and the legend is below
    assert 0 <= title.x0 < title.x1 <= figure.bbox.x1
    assert 0 <= legend.y0 < legend.y1 <= title.y0


def test_no_bound_under_autocast():
    model, x = tiny_mlp(), normal(2, 6)
    found = fperr.measure(model, x, formats=["bfloat16"], losses=["ce"], autocast=True).frame
    assert found["logit_delta_bound"].isna().all()
