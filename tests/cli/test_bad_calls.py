"""Bad calls of the commands, from one table: each ends in one line of fperr's own, with code 2."""

import io
import re
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import typer.main
from torch import nn

from fperr.cli import app

MODULE = """
import sys
import torch
from torch import nn

NUMBER = 3

def build():
    torch.manual_seed(0)
    return nn.Linear(4, 3)

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

class Odd(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.inner, self.of = build(), of

    def forward(self, x):
        return self.of(self.inner(x))

def as_dict(): return Odd(lambda z: {"logits": z, "size": 3})
def as_pair(): return Odd(lambda z: (z, 3))
def as_text(): return Odd(str)
def soft(): return Odd(lambda z: z.softmax(1))
def one_logit(): return Odd(lambda z: z[:, :1])
def raises(): return Odd(lambda z: {}["no\\nsuch\\nkey"])
def exits(): sys.exit(0)
def exits_later(): return Odd(lambda z: sys.exit(0))
def needs(width): return nn.Linear(width, 3)
def fails(): raise RuntimeError("no weights")
def nothing(): return None
def nan():
    model = build()
    nn.init.constant_(model.weight, float("nan"))
    return model
def lost(output): return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files to name: good ones, and every kind of bad ones."""
    path = tmp_path_factory.mktemp("bad_calls")
    (path / "net.py").write_text(MODULE)
    (path / "syntax.py").write_text("def build(:\n")
    (path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (path / "text").write_text("text")
    (path / "full").mkdir()
    (path / "full" / "file").write_text("text")
    x, y = np.ones((4, 4), np.float32) / 3, np.array([0, 1, 2, 0])
    archives = {
        "good": {"x": x, "y": y, "goal": (y + 1) % 3, "halves": y / 2, "few": y[:2], "own": y},
        "outside": {"x": x * 9, "y": y},
        "no_y": {"x": x},
        "no_x": {"y": y},
        "wide": {"x": np.ones((4, 5), np.float32), "y": y},
        "integers": {"x": np.ones((4, 4), np.int64), "y": y},
        "booleans": {"x": np.ones((4, 4), bool), "y": y},
        "complex": {"x": x + 1j, "y": y},
        "big_endian": {"x": x.astype(">f4"), "y": y},
        "long_double": {"x": x.astype(np.longdouble), "y": y},
        "objects": {"x": np.array([[None]] * 4), "y": y},
        "strings": {"x": np.array([["a"]] * 4), "y": y},
        "zero_d": {"x": np.float32(3), "y": np.int64(1)},
        "one_d": {"x": x[0], "y": y},
        "empty": {"x": x[:0], "y": y[:0]},
        "half_labels": {"x": x, "y": y / 2},
        "short_labels": {"x": x, "y": y[:2]},
        "huge_labels": {"x": x, "y": np.full(4, 2**63, np.uint64)},
        "unknown_labels": {"x": x, "y": y + 5},
        "negative_labels": {"x": x, "y": y - 5},
    }
    for name, arrays in archives.items():
        np.savez(path / f"{name}.npz", **arrays)
    header = io.BytesIO()  # of 36 TiB, in a file of 500 bytes
    large = {"descr": "<f4", "fortran_order": False, "shape": (10**10, 1000)}
    np.lib.format.write_array_header_1_0(header, large)
    with zipfile.ZipFile(path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    (path / "cut.npz").write_bytes((path / "good.npz").read_bytes()[:200])
    (path / "text.npz").write_text("text")
    (path / "nothing.npz").write_bytes(b"")
    np.save(path / "single.npy", x)
    (path / "single.npy").rename(path / "single.npz")
    (path / "folder.npz").mkdir()
    weights, wide = (nn.Linear(4, 3).to(d).state_dict() for d in (torch.float32, torch.float64))
    for dtype in (torch.complex64, torch.bool, torch.int64, torch.float64):
        torch.save({k: (v / 3.0).to(dtype) for k, v in wide.items()}, path / f"{dtype}.pt")
    torch.save(nn.Linear(5, 3).state_dict(), path / "other.pt")
    torch.save({"weight": weights["weight"]}, path / "half.pt")
    torch.save({"epoch": 3}, path / "epoch.pt")
    torch.save([1], path / "list.pt")
    torch.save(nn.Linear(4, 3), path / "module.pt")
    (path / "cut.pt").write_bytes((path / "other.pt").read_bytes()[:300])
    (path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (path / "text.pt").write_text("text")
    pd.DataFrame({"a": [1]}).to_parquet(path / "foreign.parquet")
    (path / "text.parquet").write_text("text")
    return path


NETWORKS = [
    *("resnet", "", ".", "net.py", "net.py:", "net.py:no", "none.py:build", "text:build", ":build"),
    *("net.py:NUMBER", "net.py:needs", "net.py:fails", "net.py:nothing", "net.py:exits"),
    *("exits.py:build", "syntax.py:build", "net.py:nan", "net.py:as_dict", "net.py:as_pair"),
    *("net.py:as_text", "net.py:soft", "net.py:one_logit", "net.py:raises", "net.py:flat"),
    "net.py:exits_later",
]
DATA = [
    *("none.npz", "no_y.npz", "no_x.npz", "wide.npz", "integers.npz", "booleans.npz"),
    *("complex.npz", "big_endian.npz", "long_double.npz", "objects.npz", "strings.npz"),
    *("zero_d.npz", "one_d.npz", "empty.npz", "half_labels.npz", "short_labels.npz"),
    *("huge_labels.npz", "unknown_labels.npz", "negative_labels.npz", "bomb.npz", "cut.npz"),
    *("text.npz", "nothing.npz", "single.npz", "folder.npz", "mnist", "full", ""),
]
CHECKPOINTS = [
    *("torch.complex64.pt", "torch.bool.pt", "torch.int64.pt", "torch.float64.pt", "other.pt"),
    *("half.pt", "epoch.pt", "list.pt", "module.pt", "cut.pt", "cut.safetensors", "text.pt"),
    *("none.pt", "full", ""),
]
COUNTS = ["0", "-1", "x", "1.5", "5", ""]  # four images there are
GOOD = {
    "measure": "net.py:build --data good.npz --losses mifpe --formats float32 --n 2",
    "attack": "net.py:build --data good.npz --radius 0.1 --steps 2 --n 2",
    "attribute": "net.py:build --data good.npz --radius 0.1 --steps 2 --n 2 --exact none",
    "layers": "net.py:build --data good.npz --n 1",
}
# command: {option, or "" for what comes first: values that must be refused}
TABLE = {
    "measure": {
        "": NETWORKS,
        "--data": DATA,
        "--checkpoint": CHECKPOINTS,
        "--logits": ["no", "NUMBER", "lost", "1", "", "0.5"],
        "--n": COUNTS,
        "--losses": [
            "hinge",
            "ce,",
            ",",
            "",
            "ce,ce",
            "ce mifpe",
            "mifpe:T=x",
            "mifpe:T=-1",
            "gama",
        ],
        "--formats": ["fp8", "float16,", "", "float32,float32", "tf32", "FLOAT32"],
        "--scenarios": ["won", "", "all,all", "untargeted_successful,untargeted_successful"],
        "--loss-scale": ["0", "-1", "nan", "inf", "x", ""],
        "--digits": ["3", "-20", "x", "20.5"],
        "--engine": ["arb", "", "mp"],
        "--out": ["text", "text/below", "full"],
        "--nothing": ["1"],
    },
    "attack": {
        "": NETWORKS,
        "--data": [*DATA, "outside.npz"],
        "--checkpoint": CHECKPOINTS,
        "--logits": ["no", "NUMBER", "lost", "1", ""],
        "--n": COUNTS,
        "--radius": [
            "0",
            "-1",
            "nan",
            "inf",
            "x",
            "",
            "8",
            "8/0",
            "/255",
            "8/255/1",
            "1e999",
            "255",
        ],
        "--box": ["0", "0,1,2", "1,0", "0,0", "a,b", "nan,1", "0,inf", "", ",", "0.5,1", "0;1"],
        "--targets": ["3", "-1", "99", "nobody", "", "1.5", "halves", "few", "own", "x"],
        "--loss": ["hinge", "", "../../ce", "$x^$", "mifpe:T=0", "ce:scenario=x"],
        "--method": ["cw", "", "PGD"],
        "--norm": ["l1", "", "2"],
        "--steps": ["0", "-1", "x", "2.5"],
        "--restarts": ["0", "-1", "x"],
        "--batch-size": ["0", "-1", "x"],
        "--seed": ["x", "1.5", ""],
        "--format": ["fp8", "tf32", "", "float128"],
        "--out": ["text", "text/below", "full", "/proc/none/such"],
        "--nothing": ["1"],
    },
    "attribute": {
        "": ["resnet", "net.py", "net.py:exits", "net.py:as_dict", "net.py:soft"],
        "--data": ["none.npz", "bomb.npz", "wide.npz", "outside.npz"],
        "--n": COUNTS,
        "--radius": ["0", "-1", "nan", "x", "", "8"],
        "--box": ["0", "1,0", ""],
        "--targets": ["3", "nobody", "", "own"],
        "--norm": ["l1", ""],
        "--steps": ["0", "x"],
        "--starts": ["0", "-1", "x"],
        "--format": ["fp8", "exact", ""],
        "--exact": ["some", ""],
        "--search": ["square", ""],
        "--batch-size": ["0", "x"],
        "--seed": ["x", ""],
        "--out": ["text", "text/below", "full"],
        "--nothing": ["1"],
    },
    "layers": {
        "": ["resnet", "net.py", "net.py:exits", "net.py:as_dict", "net.py:soft"],
        "--data": ["none.npz", "bomb.npz", "wide.npz", "text.npz"],
        "--checkpoint": ["torch.bool.pt", "none.pt"],
        "--logits": ["no", "NUMBER", "1"],
        "--n": COUNTS,
        "--loss": ["hinge", "", "gama"],
        "--format": ["fp8", "tf32", ""],
        "--out": ["text", "full"],
    },
    "report": {
        "": ["none.parquet", "text", "text.parquet", "foreign.parquet", "full", "good.npz", ""],
    },
    "figures": {
        "": ["no", "", "phase,table1"],
        "phase --networks": ["resnet", "", ","],
        "phase --n": ["0", "-1", "x", "99999999"],
        "phase --full --n": ["3"],
        "phase --pictures": ["gif", "", "png,gif"],
        "phase --n 1 --out": ["text", "text/below"],
        "phase --n 1 --cache": ["text", "text/below"],
        "theory --networks": ["fashion_standard"],
    },
    "validate kernels": {
        "--device": ["cuda", "nope", "meta", ""],
        "--stride": ["0", "-1", "x"],
    },
    "validate bounds": {
        "--cases": ["0", "-1", "x"],
        "--cases 10 --formats": ["fp8", "", "float32,float32", "tf32"],
        "--cases 10 --kernel": ["cuda", "", "nope"],
        "--cases 10 --seed": ["x", "-1"],
        "--cases 10 --out": ["text", "text/below"],
    },
    "validate assumption": {
        "": ["resnet", "", "net.py:build"],
        "fashion_standard --n": ["0", "-1", "x", "99999"],
        "fashion_standard --n 1 --out": ["text", "text/below"],
    },
    "validate": {"": ["nobody"]},
    "zoo": {"": ["fashion_standard"], "--nothing": ["1"]},
}


def bad_calls():
    for command, options in TABLE.items():
        for option, values in options.items():
            for value in values:
                yield command, option, value


CALLS = list(bad_calls())


def call(command, option, value):
    """The arguments: a good call in which one thing is bad."""
    good = GOOD.get(command, "").split()
    if option == "":
        return [*command.split(), value, *good[1:]]
    return [*command.split(), *good, *option.split(), value]


def outcome(arguments, monkeypatch, capsys):
    """`accepted`, or what is wrong with how the call was refused: nothing, if it was done well."""
    monkeypatch.setattr(sys, "argv", ["fperr", *arguments])
    code = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            app.main()
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr().err
    if code in (0, None):
        return "accepted"
    return faults_of(code, shown, options_of(arguments))


def options_of(arguments):
    """The options of the command that is called."""
    command = typer.main.get_command(app.app)
    for name in arguments:
        if name in getattr(command, "commands", {}):
            command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}


def faults_of(code, shown, options):
    """What is wrong with a refusal: exit code, lines, traceback, remedy, options it names."""
    wrong = [f"exit code {code}"] if code != 2 else []
    if "Traceback" in shown:
        wrong.append("a traceback")
    if "Usage:" in shown:  # the parser's own: it names the option and the value
        return "; ".join(wrong)
    lines = [line for line in shown.splitlines() if line.startswith("fperr: ")]
    if len(lines) != 1 or shown.rstrip().splitlines()[-1] != lines[0]:
        return "; ".join([*wrong, f"not one line: {shown}"])
    if "not an error of fperr's own" in lines[0]:
        wrong.append("an error of another library")
    if not REMEDY.search(lines[0]):
        wrong.append("no remedy")
    if PYTHON.search(lines[0]):
        wrong.append("a remedy of the Python API")
    if missing := set(re.findall(r"(?<![-\w])--[a-z][a-z-]*", lines[0])) - options:
        wrong.append(f"the command has no {missing}")
    return "; ".join(wrong) and f"{'; '.join(wrong)}: {lines[0]}"


REMEDY = re.compile(
    r"\b(give|expected|save|leave|use|write|build|convert|set|install|load|name|make|measure|must"
    r"|move|keep)\b",
    re.I,
)
# an argument of the Python API instead of an option
PYTHON = re.compile(
    r"(?<![-\w])(box|logits|accept_probabilities|device|reference|certify|scenarios|radius|batch_size"
    r"|loss_scale|arithmetic|targets?)=\S"
)


@pytest.mark.parametrize(
    "command", ["measure", "attack", "attribute", "layers", "report", "figures"]
)
def test_what_is_needed_is_asked_for(command, folder, monkeypatch, capsys):
    """Without arguments at all, and `attack` without a radius."""
    monkeypatch.chdir(folder)
    assert outcome([command], monkeypatch, capsys) == ""
    assert outcome(["attack", "net.py:build", "--data", "good.npz"], monkeypatch, capsys) == ""


def test_the_table_is_long_enough():
    assert len(CALLS) >= 150
    assert len(set(CALLS)) == len(CALLS)


@pytest.mark.parametrize(
    ("command", "option", "value"), CALLS, ids=[f"{c} {o} {v!r}"[:70] for c, o, v in CALLS]
)
def test_bad_calls_are_refused(command, option, value, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FPERR_DATA", raising=False)
    before = sorted(folder.rglob("*"))
    assert outcome(call(command, option, value), monkeypatch, capsys) == ""
    left = [p for p in folder.rglob("*") if p not in before and "__pycache__" not in str(p)]
    assert not left


@pytest.mark.parametrize("command", [*GOOD, "zoo"])
def test_good_calls_are_accepted(command, folder, monkeypatch, capsys, tmp_path):
    """Negative control: without the bad argument the same calls are none to refuse."""
    monkeypatch.chdir(folder)
    arguments = [command, *GOOD.get(command, "").split()]
    arguments += ["--out", str(tmp_path)] * (command in GOOD)
    assert outcome(arguments, monkeypatch, capsys) == "accepted"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (1, "fperr: x must be y: give z\n"),
        (2, "Traceback (most recent call last):\nfperr: x must be y: give z\n"),
        (2, "fperr: no such thing\n"),
        (2, "fperr: two lines\nof text, give one\n"),
        (2, "fperr: x lies outside: give box=(0, 1)\n"),
        (2, "fperr: x lies outside: give --nothing=0,1\n"),
        (2, ""),
    ],
)
def test_a_bad_refusal_is_noticed(code, shown):
    """Negative control of what is looked at."""
    assert faults_of(code, shown, {"--box"})
    assert faults_of(2, "fperr: x must be y: give --box=0,1\n", {"--box"}) == ""
