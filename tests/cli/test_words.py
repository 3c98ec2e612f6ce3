"""The command line's own words: numbers, boxes, targets, folders, and how it ends."""

import contextlib
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer.main
from torch import nn

import fperr
from fperr import data
from fperr.cli import app, faults, options
from fperr.cli.work.targets import target_classes
from fperr.networks.model import LogitsOf
from tests.conftest import normal, tiny_mlp
from tests.lowest import ROOT, lowest


@pytest.mark.parametrize("text", ["8/255", "0.03", "1e-2", "1/3", "16.0/255", "-3/4", "2"])
def test_numbers_are_those_of_python(text):
    assert options.number(text, "--radius") == eval(text)


def test_boxes():
    assert options.box("-0.81,2.02") == (-0.81, 2.02)
    assert options.box("0, 1/3") == (0.0, 1 / 3)


def test_targets(tmp_path):
    y = torch.tensor([0, 1, 2, 9] * 100)
    following = target_classes("next", y, 10, 0, None)
    assert following[:4].tolist() == [1, 2, 3, 0]
    drawn = target_classes("random", y, 10, 0, None)
    assert (drawn != y).all()
    assert sorted(set(drawn[y == 0].tolist())) == list(range(1, 10))
    assert torch.equal(drawn[:7], target_classes("random", y[:7], 10, 0, None))
    assert not torch.equal(drawn, target_classes("random", y, 10, 1, None))
    assert target_classes("3", y, 10, 0, None).unique().tolist() == [3]
    np.savez(tmp_path / "d.npz", x=np.zeros((400, 2)), y=y, goal=following.numpy().astype("u1"))
    held = target_classes("goal", y[:5], 10, 0, str(tmp_path / "d.npz"))
    assert torch.equal(held, following[:5])


NAMES = [
    *("build", "fashion_standard", "mnist_levelsets_eps0.4", "net.py:build", "net.py/build"),
    *("../one.py:build", "/tmp/one.py:build", "..", ".", "", " ", "$x^$", "é", "a b", "a:b", "a/b"),
    *("nul\0", "two\nlines", "-rf", ".hidden", "x" * 300, "x" * 301, "mifpe:T=4", "mifpe-T-4"),
    *("b-0123abcd", "~", "C:\\x", "\udcff", "con|", "*", "out/../../x"),
]


def test_folder_names_stay_inside_and_apart(tmp_path):
    folders = [options.folder_name(name) for name in NAMES]
    assert len({name.lower() for name in folders}) == len(NAMES)
    for folder in folders:
        assert folder
        assert set(folder) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )
        assert folder[0] not in ".-"
        made = tmp_path / folder
        made.mkdir()
        assert made.resolve().parent == tmp_path.resolve()
    for name in ("build", "fashion_standard-tmifpe", "mnist_levelsets_eps0.4"):
        assert options.folder_name(name) == name
    # what a changed name is called cannot be another's own name
    assert options.folder_name(options.folder_name("a:b")) != options.folder_name("a:b")


def test_default_folders_of_two_factories_of_one_name(tmp_path, monkeypatch):
    """They lie inside out/, and dollars in a path are letters in the picture."""
    here = tmp_path / "$x^$"
    here.mkdir()
    text = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(4, 3))\n"
    for name in ("one", "two"):
        (tmp_path / f"$x^$/{name}.py").write_text(text)
    inner = tmp_path / "cwd"
    inner.mkdir()
    np.savez(inner / "ok.npz", x=np.ones((1, 4), np.float32), y=np.array([0]))
    sources = [f"../$x^$/{name}.py:build" for name in ("one", "two")]
    options = ["--data", "ok.npz", "--losses", "mifpe", "--formats", "float32"]
    monkeypatch.chdir(inner)
    assert called(["measure", *sources, *options], monkeypatch) == 0
    found = list(tmp_path.rglob("measurements.parquet"))
    assert len(found) == 1
    assert found[0].parent.parent == inner / "out"
    assert (found[0].parent / "relative_error.png").stat().st_size > 10_000


def main_with(monkeypatch, fault, *arguments):
    """`main` where the command `zoo` raises something; the exit code."""

    def raising():
        raise fault

    monkeypatch.setattr("fperr.zoo.REGISTRY", type("R", (), {"values": staticmethod(raising)})())
    monkeypatch.setattr(sys, "argv", ["fperr", "zoo", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code


FAULTS = [
    KeyError("x"),
    MemoryError(),
    RuntimeError("two\nlines"),
    AttributeError("x"),
    AssertionError("x"),
    StopIteration(),
    RecursionError("deep"),
    OSError(28, "No space left on device", "out/x"),
    np.linalg.LinAlgError("x"),
    fperr.FperrError("one\nfault"),
    SystemExit(0),
    SystemExit("bye"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: type(f).__name__)
def test_everything_ends_in_one_line_and_code_2(fault, monkeypatch, capsys):
    assert main_with(monkeypatch, fault) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("fperr: ")
    assert shown.count("\n") == 1
    is_foreign = not isinstance(fault, fperr.FperrError | OSError | SystemExit)
    assert ("FPERR_TRACEBACK=1" in shown) == is_foreign


def test_the_traceback_is_shown_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("FPERR_TRACEBACK", "1")
    assert main_with(monkeypatch, KeyError("x")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.splitlines()[-1].startswith("fperr: KeyError: 'x' (not an error of fperr's own")


def test_an_interrupt_ends_with_a_line_and_code_130(monkeypatch, capsys):
    assert main_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "fperr: interrupted\n"


def called(arguments, monkeypatch):
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["fperr", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code or 0


def test_the_version(monkeypatch, capsys):
    assert called(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"fperr {fperr.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fperr.__version__)


def test_the_words_of_the_python_api_are_those_of_the_command():
    """The errors that name an argument, from the API itself, name an option of the command."""
    model, x = tiny_mlp(), normal(3, 6)
    y = model(x).argmax(1)
    calls = {
        "--box=LOW,HIGH": lambda: fperr.attack(model, 9 + x, y, radius=0.1),
        "--radius 8/255": lambda: fperr.attack(model, x.sigmoid(), y, radius=8),
        "--accept-probabilities": lambda: fperr.measure(
            torch.nn.Sequential(model, torch.nn.Softmax(1)).eval(), x
        ),
        "--logits 0": lambda: fperr.measure(Pair().eval(), x),
        "--logits FUNCTION": lambda: fperr.measure(torch.nn.Linear(6, 1).eval(), x),
        "--format float32": lambda: fperr.attack(model, x.sigmoid(), y, radius=0.1, format="tf32"),
    }
    if torch.cuda.is_available():
        del calls["--format float32"]
    commands = typer.main.get_command(app.app).commands
    known = {o for name in ("attack", "measure") for p in commands[name].params for o in p.opts}
    for words, failing in calls.items():
        with pytest.raises(
            ValueError, match=words.split()[0].strip("-").split("=")[0][:5]
        ) as caught:
            failing()
        line = faults.one_line(caught.value)
        assert words in line
        assert words.split()[0].split("=")[0] in known
        assert words not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("leave targets= out", "leave --targets out"),
        ("move it there with device='cuda', or leave 'tf32' out", "leave 'tf32' out"),
        ("move model and x there, or use 'float32'", "use 'float32'"),
        ("digits must be at least 20", "--digits must be at least 20"),
        ("the model's own box=(1, 2) stays", "the model's own box=(1, 2) stays"),
        ("x must have shape (3,)", "x must have shape (3,)"),
    ],
)
def test_single_words(text, line):
    assert faults.on_command_line(text) == line


class Pair(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("radius", "norm", "is_right"),
    [(1.0, "linf", True), (1.01, "linf", False), (2.44, "l2", True), (2.46, "l2", False)],
)
def test_a_radius_beyond_the_box_is_questioned(radius, norm, is_right):
    """Of 6 numbers in [0, 1], points are up to sqrt(6) = 2.449 apart."""
    model, x = tiny_mlp(), normal(2, 6).sigmoid()
    y = model(x).argmax(1)
    if is_right:
        fperr.attack(model, x, y, radius=radius, norm=norm, steps=1)
        return
    with pytest.raises(ValueError, match=r"Did you mean radius=[\d.]+/255"):
        fperr.attack(model, x, y, radius=radius, norm=norm, steps=1)
    fperr.attack(model, x, y, radius=radius, norm=norm, steps=1, box=(0.0, 9.0))
    fperr.attack(model, x, y, radius=radius / 255, norm=norm, steps=1)


MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first = nn.Conv2d(1, 4, 3, 2)
        self.inner = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(676, 10))
    def forward(self, x):
        return {"logits": self.inner(x), "size": 3}
class Pair(Net):
    def forward(self, x):
        return 3, self.inner(x)
class Named(Net):
    def forward(self, x):
        from types import SimpleNamespace
        return SimpleNamespace(scores=self.inner(x))
def plain():
    return Net().inner
def last(output):
    return output[-1]
"""


def test_standardised_images_targets_and_parts_of_outputs(tmp_path, fashion, monkeypatch, capsys):
    """One attack on one network, by every option that says where things are."""
    (tmp_path / "net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    x, y = (fashion.x[:6].numpy() - 0.286) / 0.353, fashion.y[:6].numpy()
    np.savez(tmp_path / "d.npz", x=x.astype("f4"), y=y, goal=(y + 1) % 10)
    common = ["--data", "d.npz", "--radius", "8/255", "--box=-0.811,2.023", "--steps", "2"]
    calls = {
        "plain": ["net.py:plain", "--targets", "next"],
        "name": ["net.py:Net", "--logits", "logits", "--targets", "goal"],
        "index": ["net.py:Pair", "--logits", "1", "--targets", "goal"],
        "function": ["net.py:Pair", "--logits", "last", "--targets", "next"],
        "attribute": ["net.py:Named", "--logits", "scores", "--targets", "next"],
    }
    frames = {}
    for name, call in calls.items():
        arguments = ["attack", *call, *common, "--n", "6", "--out", name]
        assert called(arguments, monkeypatch) == 0
        assert "the target (" in capsys.readouterr().out
        frames[name] = pd.read_parquet(tmp_path / name / "attack.parquet")
        pd.testing.assert_frame_equal(frames[name], frames["plain"])


def test_a_target_for_all_leaves_its_own_class_out(monkeypatch, tmp_path, capsys, fashion):
    monkeypatch.chdir(tmp_path)
    options = ["--radius", "8/255", "--n", "12", "--steps", "1", "--targets", "1"]
    assert called(["attack", "fashion_standard", *options], monkeypatch) == 0
    own = (fashion.y[:12] == 1).nonzero().flatten().tolist()
    assert own
    assert f"{len(own)} of 12 images are of class 1" in capsys.readouterr().out
    frame = pd.read_parquet(tmp_path / "out" / "fashion_standard-tmifpe" / "attack.parquet")
    assert frame["sample"].tolist() == [i for i in range(12) if i not in own]
    assert frame["label"].tolist() == [int(fashion.y[i]) for i in frame["sample"]]


def test_the_lowest_versions_are_those_of_the_project():
    """`make test-lowest` installs what pyproject.toml says, and nothing else."""
    assert (ROOT / "constraints-lowest.txt").read_text() == lowest()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(lowest().splitlines()) == 1 + len(project["dependencies"])
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
    )
    for line in lowest().splitlines()[1:]:
        name, version = line.lower().split("==")
        least, newest = (tuple(map(int, v.split("."))) for v in (version, pinned[name]))
        assert least <= newest
    files = (ROOT / "Makefile").read_text().split("DOORS := ")[1].split("INSTALL")[0]
    assert all(Path(ROOT / file).is_file() for file in files.replace("\\", "").split())


def test_a_name_that_is_nowhere_in_the_output():
    x = data.fashion_mnist_1000().x[:1]
    for output in ({"scores": x}, (x, x), torch.ones(2)):
        picked = LogitsOf(Returning(output), "logits")
        with pytest.raises(ValueError, match=r"has no tensor at logits='logits': ") as raised:
            picked(x)
        assert "--logits" in faults.on_command_line(str(raised.value))
    with pytest.raises(ValueError, match="has no tensor at logits='logits'"):
        LogitsOf(Returning({"logits": 1}), "logits")(x)
    assert LogitsOf(Returning({"logits": x}), "logits")(x) is x


class Returning(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (
            ["layers", "fashion_standard", "--n", "1", "--format", "float16"],
            [
                "out/fashion_standard-layers/layers.parquet",
                "out/fashion_standard-layers/layers.png",
            ],
        ),
        (
            ["validate", "assumption", "fashion_standard", "--n", "2"],
            ["out/assumption/assumption.csv", "out/assumption/assumption.png"],
        ),
    ],
)
def test_results_are_written_where_no_folder_was(command, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fperr", *command])
    with contextlib.suppress(SystemExit):
        app.main()
    assert all((tmp_path / file).stat().st_size for file in files)
