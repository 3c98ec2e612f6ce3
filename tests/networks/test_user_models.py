"""Other people's models: accessors, wrappers, heads, sizes, the command line by its page."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fperr
import fperr.cli.app
from fperr.measurement import estimate
from fperr.networks import from_file
from tests.conftest import normal, seeded, tiny_mlp
from tests.makers.commands import run

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "own_network.md"
ONE = {"losses": ["mifpe"], "formats": ["float32"], "scenarios": ["untargeted_unsuccessful"]}


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp()
        self.eval()

    def forward(self, x):
        return {"logits": self.inner(x), "features": x}


def test_logits_inside_another_output():
    x = normal(2, 6)
    with pytest.raises(
        ValueError,
        match=r"got dict with 'logits', 'features': say where .*='logits'",
    ):
        fperr.measure(Wrapped(), x)
    found = fperr.measure(Wrapped(), x, logits=lambda output: output["logits"], **ONE)
    plain = fperr.measure(tiny_mlp(), x, **ONE)
    assert found.frame["delta"].tolist() == plain.frame["delta"].tolist()
    assert found.frame["network"].unique().tolist() == ["Wrapped"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrappers_and_torchscript_are_the_model():
    x = normal(2, 6)
    plain = fperr.measure(tiny_mlp(), x, **ONE)
    for other in (
        torch.compile(tiny_mlp()),
        nn.DataParallel(tiny_mlp()),
        torch.compile(nn.DataParallel(tiny_mlp())),
        torch.jit.trace(tiny_mlp(), x),
        torch.jit.script(tiny_mlp()),
    ):
        found = fperr.measure(other, x, **ONE).frame
        assert found["delta"].tolist() == plain.frame["delta"].tolist()
        assert found["network"].unique().tolist() == plain.frame["network"].unique().tolist()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_frozen_torchscript_is_refused_and_its_remedy_works():
    x = normal(2, 6)
    traced = torch.jit.trace(tiny_mlp(), x)
    with pytest.raises(TypeError, match=r"give the module as it was before torch\.jit\.freeze"):
        fperr.measure(torch.jit.freeze(traced), x)
    assert fperr.measure(traced, x, **ONE).frame["delta"].notna().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_refused_unless_accepted(dtype):
    model = nn.Sequential(tiny_mlp(), nn.Softmax(1)).eval().to(dtype)
    x = normal(3, 6).to(dtype)
    with pytest.raises(ValueError, match="the model returns probabilities, not logits"):
        fperr.measure(model, x)
    report = fperr.measure(model, x, accept_probabilities=True, losses=["ce"])
    assert report.frame["delta"].notna().all()
    doubles = report.frame[report.frame["format"] == "float64"]
    assert (doubles["delta"] < 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probabilities_are_logits(dtype):
    """Whose exponentials sum to 1: the exact gradients are those of the network without them."""
    plain, x = tiny_mlp().to(dtype), normal(3, 6).to(dtype)
    model = nn.Sequential(plain, nn.LogSoftmax(1)).eval()
    report = fperr.measure(model, x, losses=["ce", "cw"], formats=["float32"], progress=False)
    assert report.frame["delta"].notna().all()
    v = torch.zeros(plain(x).shape, dtype=dtype)
    v[:, 0], v[:, 1] = 1, -1  # as every loss of differences: its sum is 0
    found, expected = (fperr.exact.gradient(m, x, v) for m in (model, plain))
    error = (found.to_torch() - expected.to_torch()).norm() / expected.to_torch().norm()
    assert error <= 2.0**found.log2_error + 2.0**expected.log2_error + 2.0**-52


def test_logits_that_look_a_little_like_probabilities_are_not_refused():
    """Negative control: logits that are all positive."""
    model = nn.Sequential(tiny_mlp(), nn.ReLU()).eval()
    assert len(fperr.measure(model, normal(3, 6), **ONE).frame) == 3


def test_channels_last_inputs():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    x = normal(2, 3, 6, 6)
    plain = fperr.measure(model, x, **ONE)
    last = fperr.measure(
        model.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
        **ONE,
    )
    assert last.frame["is_certified"].all()
    assert (last.frame["delta"] < 1e-5).all()
    # in float64, whose sums depend on the order: 100 additions of numbers of the logits' size
    assert last.frame["margin"].to_numpy() == pytest.approx(plain.frame["margin"], rel=1e-12)


def test_inputs_with_the_channels_at_the_end():
    class HeightWidthChannels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x.permute(0, 3, 1, 2)).flatten(1)

    report = fperr.measure(seeded(HeightWidthChannels()), normal(2, 5, 4, 3), **ONE)
    assert (report.frame["delta"] < 1e-5).all()


@pytest.mark.parametrize("classes", [2, 1000])
def test_heads_of_any_width(classes):
    model = tiny_mlp(classes=classes)
    report = fperr.measure(model, normal(1, 6), **{**ONE, "losses": ["ce", "mifpe", "tmifpe"]})
    assert report.frame["is_certified"].all()
    assert (report.frame["delta"] < 1e-4).all()
    assert report.frame["T"].notna().all()


def test_images_of_224_pixels():
    model = seeded(
        nn.Sequential(
            nn.Conv2d(3, 2, 8, stride=8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(98, 3)
        )
    )
    report = fperr.measure(model, torch.rand(1, 3, 224, 224), **ONE)
    assert report.frame["is_certified"].all()
    assert (report.frame["delta"] < 1e-5).all()


def test_an_estimate_is_of_the_right_size():
    model, x = tiny_mlp(), normal(4, 6)
    found = estimate(model, x, name="tiny", losses=["ce"])
    assert (found.samples, found.rows, found.classes, found.networks) == (4, 4 * 4 * 3, 4, 2)
    assert found.rows == len(fperr.measure(model, x, losses=["ce"]).frame)
    assert re.fullmatch(
        r"tiny: 4 samples, 4 classes, 48 rows, 2 exact networks; about \d+ s and 0\.0 GiB .*",
        found.describe(),
    )
    with pytest.raises(ValueError, match="unknown loss 'xent'"):
        estimate(model, x, losses=["xent"])
    larger = estimate(seeded(nn.Linear(600, 100)), normal(4, 600), losses=["ce"])
    assert larger.bytes > 100 * found.bytes
    more = estimate(model, normal(4000, 6), losses=["ce"])  # times differ between calls: 1000 times
    assert more.seconds > found.seconds


def example_of_the_page():
    """The module and the command of the page about one's own network."""
    text = PAGE.read_text()
    module = re.search(r"```python\n(# my_network\.py\n.*?)```", text, re.S)
    command = re.search(r"\$ (fperr measure my_network\.py:build [^\n]*--out out/mine)\n", text)
    assert module
    assert command
    return module[1], command[1].split()[1:]


@pytest.mark.slow
def test_the_pages_example_runs_as_it_stands(tmp_path):
    module, command = example_of_the_page()
    (tmp_path / "my_network.py").write_text(module)
    model = seeded(from_file.load(f"{tmp_path / 'my_network.py'}:build"))
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    x = np.random.default_rng(0).random((5, 1, 28, 28), dtype=np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(5))
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = fperr.Report.from_parquet(tmp_path / "out" / "mine" / "measurements.parquet")
    assert report.frame["sample"].nunique() == 3
    assert report.frame["is_certified"].all()
    rebuilt = run("report", "out/mine/measurements.parquet", cwd=tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    dry = run(*command, "--dry-run", cwd=tmp_path)
    assert "build: 3 samples, 10 classes" in dry.stdout


MODULE = """
import torch
from torch import nn

FIVE = 5

def build():
    return nn.Linear(4, 3)

def needs(width):
    return nn.Linear(width, 3)

def broken():
    raise RuntimeError("no weights here")

def number():
    return 3

def pair():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x
    return Pair(4, 3)

def first(output):
    return output[0]
"""


class Payload:
    """Runs code when it is unpickled: it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(MODULE)
    (tmp_path / "syntax.py").write_text("def build(:\n")
    np.savez(tmp_path / "images.npz", x=np.ones((2, 4), np.float32) / 3, y=np.array([0, 1]))
    np.savez(tmp_path / "wide.npz", x=np.ones((2, 5), np.float32), y=np.array([0, 1]))
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "good.pt")
    torch.save({"model_state_dict": nn.Linear(4, 3).state_dict()}, tmp_path / "nested.pt")
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "good.safetensors")
    torch.save(nn.Linear(5, 3).state_dict(), tmp_path / "other.pt")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pt")
    torch.save({0: torch.ones(2)}, tmp_path / "integers.pt")
    parallel = {f"module.{k}": v for k, v in nn.Linear(4, 3).state_dict().items()}
    torch.save(parallel, tmp_path / "parallel.pt")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:100])
    x = np.ones((2, 4), np.float32)
    np.savez(tmp_path / "floats.npz", x=x, y=np.array([0.9, 1.7]))
    np.savez(tmp_path / "scalar.npz", x=x, y=np.array(1))
    torch.save(nn.Linear(4, 3), tmp_path / "module.pt")
    torch.save({"weight": Payload(tmp_path / "executed")}, tmp_path / "payload.pt")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:300])
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "text.pt").write_text("weights")
    return tmp_path


FAULTS = {
    "no function": (["net.py"], "net.py names no function: expected e.g. net.py:build"),
    "no file": (["none.py:build"], "none.py is not a Python file: expected path/to/module.py:fact"),
    "no factory": (["net.py:make"], "net.py defines no 'make': expected one of broken, build"),
    "arguments": (["net.py:needs"], "net.py:needs needs the arguments width"),
    "factory fails": (["net.py:broken"], "net.py:broken fails: RuntimeError: no weights here"),
    "not a function": (["net.py:FIVE"], "net.py:FIVE must be a function, got int"),
    "exits": (["exits.py:build"], "exits.py cannot be imported: SystemExit: 0"),
    "DataParallel": (
        ["net.py:build", "--checkpoint", "parallel.pt"],
        "its names start with 'module.': save model.module.state_dict()",
    ),
    "integer keys": (
        ["net.py:build", "--checkpoint", "integers.pt"],
        "must hold tensors by name, got ['0']",
    ),
    "truncated images": (
        ["net.py:build", "--data", "cut.npz"],
        "cut.npz cannot be read as",
    ),
    "labels of floats": (
        ["net.py:build", "--data", "floats.npz"],
        "y must hold one integer class for each of the 2 samples of x, got float64 of shape (2,)",
    ),
    "one label": (["net.py:build", "--data", "scalar.npz"], "got int64 of shape ()"),
    "twice": (["net.py:build", "net.py:build"], "networks must be different"),
    "folder inside a file": (
        ["net.py:build", "--data", "images.npz", "--out", "net.py/sub"],
        "net.py/sub cannot be made",
    ),
    "not a module": (["net.py:number"], "must return a torch.nn.Module, got int"),
    "syntax": (["syntax.py:build"], "syntax.py cannot be imported: SyntaxError"),
    "no data": (["net.py:build"], "net.py:build needs --data: a .npz file with x"),
    "missing weights": (["net.py:build", "--checkpoint", "no.pt"], "checkpoint no.pt is missing"),
    "other weights": (
        ["net.py:build", "--checkpoint", "other.pt"],
        "checkpoint other.pt does not fit the model",
    ),
    "no tensors": (
        ["net.py:build", "--checkpoint", "no_tensors.pt"],
        "must hold tensors by name, got ['epoch']",
    ),
    "pickled module": (
        ["net.py:build", "--checkpoint", "module.pt"],
        "loading it would execute code: it was not loaded",
    ),
    "payload": (
        ["net.py:build", "--checkpoint", "payload.pt"],
        "loading it would execute code: it was not loaded",
    ),
    "bare pickle": (["net.py:build", "--checkpoint", "bare.pkl"], "it was not loaded"),
    "truncated": (["net.py:build", "--checkpoint", "truncated.pt"], "it may be truncated"),
    "truncated safetensors": (
        ["net.py:build", "--checkpoint", "truncated.safetensors"],
        "it may be truncated",
    ),
    "text": (["net.py:build", "--checkpoint", "text.pt"], "checkpoint text.pt"),
    "tuple": (
        ["net.py:pair", "--data", "images.npz"],
        "got tuple of 2: say where the logits are, e.g. --logits 0",
    ),
    "wrong images": (["net.py:build", "--data", "wide.npz"], "the model fails on x[:"),
    "no accessor": (
        ["net.py:pair", "--data", "images.npz", "--logits", "third"],
        "has no tensor at --logits 'third': say where the logits are",
    ),
    "zoo with weights": (
        ["fashion_standard", "--checkpoint", "good.pt"],
        "--checkpoint and --logits belong to path/to/module.py:factory",
    ),
    "used folder": (
        ["net.py:build", "--data", "images.npz", "--out", "."],
        "and no command.json): give another folder with --out, or begin anew with --overwrite",
    ),
    "out is a file": (
        ["net.py:build", "--data", "images.npz", "--out", "net.py"],
        "net.py is a file: give --out a folder",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), FAULTS.values(), ids=FAULTS)
def test_faults_on_the_command_line(arguments, text, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    if "--data" not in arguments and "no data" not in text and "needs --data" not in text:
        arguments = [*arguments, "--data", "images.npz"]
    monkeypatch.setattr("sys.argv", ["fperr", "measure", *arguments, "--n", "2"])
    with pytest.raises(SystemExit) as end:
        fperr.cli.app.main()
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert "Traceback" not in shown
    assert not (folder / "executed").exists()


def test_the_payload_is_a_real_one(folder):
    """Negative control: unpickled without care, it does run."""
    torch.load(folder / "payload.pt", weights_only=False)
    assert (folder / "executed").exists()


@pytest.mark.parametrize("weights", ["good.pt", "nested.pt", "good.safetensors"])
def test_checkpoints_that_fit(weights, folder):
    model = from_file.load(f"{folder / 'net.py'}:build", folder / weights)
    assert not model.training
    assert isinstance(model, nn.Linear)


@pytest.mark.slow
def test_an_accessor_on_the_command_line(folder):
    command = ["measure", "net.py:pair", "--logits", "first", "--data", "images.npz", "--n", "2"]
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "pair" / "report.html").stat().st_size > 50_000
    again = run(*command, cwd=folder)  # with the other weights that the factory makes
    assert again.returncode == 2
    assert "holds another measurement (model digest " in again.stderr
    assert "begin anew: --overwrite" in again.stderr
    anew = run(*command, "--overwrite", cwd=folder)
    assert anew.returncode == 0, anew.stderr


def test_two_factories_of_one_name_are_told_apart(folder):
    (folder / "other.py").write_text(MODULE)
    done = run(
        *["measure", "net.py:build", "other.py:build", "--data", "images.npz", "--n", "1"],
        *["--losses", "mifpe, stable_ce", "--formats", "float32", "--out", "both"],
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "no --checkpoint, the weights are those that the factory makes" in done.stdout
    report = fperr.Report.from_parquet(folder / "both" / "measurements.parquet")
    assert report.frame["network"].unique().tolist() == ["net.py:build", "other.py:build"]


def test_a_module_may_import_its_neighbours_and_define_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\nfrom neighbour_of_net import WIDTH\n\n"
        "@dataclass\nclass Settings:\n    width: int = WIDTH\n\n"
        "def build():\n    return nn.Linear(Settings().width, 3)\n"
    )
    assert from_file.load(f"{tmp_path / 'net.py'}:build").in_features == 4


def test_networks_that_differ_in_plain_numbers_have_different_digests():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.inner, self.factor = tiny_mlp(), factor

        def forward(self, x):
            return self.inner(x) * self.factor

    x = normal(1, 6)
    digests = {
        fperr.measure(Scaled(f).eval(), x, **ONE).provenance["Scaled"]["model"]["digest"]
        for f in (1.0, 400.0)
    }
    assert len(digests) == 2
