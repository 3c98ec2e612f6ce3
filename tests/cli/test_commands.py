import re
import sys

import numpy as np
import pandas as pd
import pytest
from torch import nn

import fperr
from fperr import data
from fperr.attacks import attack_in_batches
from fperr.cli import app
from tests.makers.commands import run, started


def test_the_main_job(tmp_path):
    done = started("measure", "fashion_standard", "--n", "1", "--scenarios", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("untargeted_unsuccessful", "tmifpe in float16", "In short: "):
        assert text in done.stdout
    assert done.stderr == ""  # no progress where standard error is no terminal
    folder = tmp_path / "out" / "fashion_standard"
    report = fperr.Report.from_parquet(folder / "measurements.parquet")
    assert len(report.frame) == 36
    for file in ("relative_error.png", "report.html"):
        assert (folder / file).stat().st_size > 10_000
        assert file in done.stdout


FACTORIES = """
import torch
from torch import nn

class Undecidable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.inner(x)
        return self.outer(torch.relu(h.exp() * (-h).exp() - 1) + h)

def undecidable():
    torch.manual_seed(0)
    return Undecidable().eval()

def flat():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    nn.init.constant_(model[0].bias, -100.0)
    return model

def plain():
    torch.manual_seed(0)
    return nn.Linear(4, 3).eval()
"""


@pytest.fixture
def factories(tmp_path):
    (tmp_path / "nets.py").write_text(FACTORIES, encoding="utf-8")
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "few.npz", x=x, y=np.array([0, 1]))
    return ["--data", "few.npz", "--engine", "ball", "--formats", "float32"]


@pytest.mark.parametrize(
    ("networks", "code", "texts"),
    [
        (
            ["undecidable"],
            1,
            ["fperr: undecidable: 6 of 6 rows were not measured: the reference could not be"],
        ),
        (["flat"], 1, ["fperr: flat: 6 of 6 rows were not measured: the exact gradient is zero"]),
        pytest.param(
            ["plain", "undecidable"], 1, ["fperr: undecidable: 6 of 6 rows"], marks=pytest.mark.slow
        ),
        (["plain"], 0, []),
    ],
    ids=["undecidable", "flat", "both", "plain"],
)
def test_nothing_measured_is_said_and_ends_with_code_1(networks, code, texts, factories, tmp_path):
    names = [f"nets.py:{name}" for name in networks]
    done = run("measure", *names, *factories, "--out", "here", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("fperr: ")]
    assert len(said) == len(texts)
    for line, text in zip(said, texts, strict=True):
        assert line.startswith(text)
    assert "Warning" not in done.stderr  # the same sentence once, and not as Python prints it
    report = fperr.Report.from_parquet(tmp_path / "here" / "measurements.parquet")
    assert len(report.frame) == 6 * len(networks)
    page = (tmp_path / "here" / "report.html").read_text(encoding="utf-8")
    assert ("What to do: " in page) == bool(texts)
    assert ("No gap is shown, as nothing was measured" in done.stdout) == bool(texts)


def test_a_row_that_was_measured_is_enough_for_code_0(tmp_path, factories):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    x[1] = 1000.0  # float16 holds it, and a unit of `flat` reacts to it
    np.savez(tmp_path / "few.npz", x=x, y=np.array([0, 1]))
    done = run("measure", "nets.py:flat", *factories, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    frame = fperr.Report.from_parquet(tmp_path / "out" / "flat" / "measurements.parquet").frame
    assert frame.groupby("sample")["delta"].count().tolist() == [0, 3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["measure", "resnet"],
            "fperr: unknown network 'resnet': expected one of fashion_standard",
        ),
        (
            ["measure", "mnist_fastat_pgd"],
            "`fperr fetch mnist_test` gets it; or set the environment",
        ),
        (["measure", "fashion_standard", "--n", "0"], "give a number from 1 to 1000"),
        (["measure", "fashion_standard", "--losses", "ce,xent"], "unknown loss 'xent'"),
        (["measure", "fashion_standard", "--formats", "fp8"], "unknown format 'fp8'"),
        (["measure", "fashion_standard", "--scenarios", "won"], "unknown scenario 'won'"),
        (["measure", "fashion_standard", "--data", "none.npz"], "none.npz is missing"),
        (["measure", "fashion_standard", "--digits", "3"], "digits must be at least 20"),
        (["attack", "fashion_standard"], "--radius"),
        (["attack", "fashion_standard", "--radius", "-1"], "radius must be"),
        (["attack", "fashion_standard", "--radius", "1", "--loss", "xent"], "unknown loss 'xent'"),
        (["attack", "fashion_standard", "--radius", "1", "--batch-size", "0"], "--batch-size must"),
    ],
)
def test_faults_end_with_their_text_and_code_2(arguments, text, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_attack_is_resumed(tmp_path):
    """What was cut off goes on; what is there is not done again; other settings are refused."""
    command = ["attack", "fashion_standard", "--radius", "0.02", "--n", "10", "--steps", "5"]
    command += ["--batch-size", "4", "--seed", "3"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "fashion_standard-tmifpe"
    parts = sorted(folder.glob("*.safetensors"))
    assert [p.name for p in parts] == [f"{i:07d}.safetensors" for i in (0, 4, 8)]
    whole = pd.read_parquet(folder / "attack.parquet")
    images = fperr.zoo.load("fashion_standard"), data.fashion_mnist_1000().first(10)
    found = fperr.attack(images[0], images[1].x, images[1].y, radius=0.02, steps=5, seed=3)
    assert list(whole["success"]) == found.success.tolist()
    assert list(whole["sample"]) == list(range(10))
    assert f"{100 * found.robust_accuracy:.2f} % robust accuracy" in done.stdout
    before = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    (folder / "attack.parquet").unlink()
    again = run(*command, cwd=tmp_path)
    assert again.stdout == done.stdout
    assert parts[0].stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "attack.parquet"), whole)
    same = {"radius": 0.02, "steps": 5, "seed": 3, "batch_size": 4, "loss": "tmifpe"}
    same |= {"method": "pgd", "norm": "linf", "format": "float32", "restarts": 1}
    attack_in_batches(images[0], images[1].x, images[1].y, folder, **same)  # defaults spelled out
    harder = nn.Sequential(images[0], nn.Tanh()).eval()
    with pytest.raises(ValueError, match="holds another attack"):
        attack_in_batches(harder, images[1].x, images[1].y, folder, **same)
    other = run(*command, "--steps", "6", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds another attack (steps 5 there, 6 here)" in other.stderr


def test_the_zoo_is_listed():
    done = run("zoo")
    assert done.returncode == 0
    assert all(name in done.stdout for name in fperr.zoo.REGISTRY)


def test_what_was_finished_is_written(monkeypatch, tmp_path, capsys):
    report = fperr.measure(fperr.zoo.load("fashion_standard"), *first_image(), losses=["mifpe"])

    def failing(*_, **__):
        fault = fperr.errors.CaptureAuditError("the graph differs")
        fault.report = report
        raise fault

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fperr.cli.work.measure.measure", failing)
    monkeypatch.setattr(sys, "argv", ["fperr", "measure", "fashion_standard", "--n", "1"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    assert "the graph differs" in capsys.readouterr().err
    found = fperr.Report.from_parquet("out/fashion_standard/measurements.parquet")
    assert len(found.frame) == len(report.frame)


def first_image():
    images = fperr.data.fashion_mnist_1000()
    return images.x[:1], images.y[:1]


def test_an_attribution_ends_with_a_sentence_and_goes_on(tmp_path):
    command = [
        "attribute", "fashion_saturated", "--radius", "0.05", "--n", "20", "--steps", "5",
        "--starts", "1", "--exact", "none", "--search", "restarts", "--targets", "next",
    ]  # fmt: skip
    first = run(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "fashion_saturated: Cross-entropy PGD leaves " in first.stdout
    assert first.stderr == ""  # neither forecast nor progress where that is no terminal
    folder = tmp_path / "out" / "fashion_saturated-attribution"
    assert len(pd.read_parquet(folder / "attribution.parquet")) == 20
    again = run(*command, cwd=tmp_path)
    assert again.stdout == first.stdout
    forecast = run(*command, "--out", "none", "--dry-run", cwd=tmp_path)
    assert re.fullmatch(
        r"fashion_saturated: 20 images, about [0-9.]+ (s|min) of computing\n", forecast.stdout
    )
    assert not (tmp_path / "none").exists()
    of_a_class = run(*command[:-1], "3", cwd=tmp_path)
    assert "--targets must be next, random or the name of an array, got 3" in of_a_class.stderr
