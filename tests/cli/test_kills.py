"""Commands that are killed, started twice, or run into a full disk: nothing measured is lost."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fperr
from fperr import data, zoo
from fperr.attacks import attack_in_batches
from fperr.cli import app
from fperr.errors import DamagedFileWarning, StorageError
from tests.makers.commands import Command

MEASURE = ["measure", "fashion_standard", "fashion_saturated", "--n", "2", "--losses", "ce"]
MEASURE += ["--formats", "float32", "--engine", "double_word", "--out", "out"]
ATTACK = ["attack", "fashion_standard", "--radius", "0.05", "--n", "12", "--batch-size", "2"]
ATTACK += ["--steps", "20", "--out", "out"]


def start(arguments, folder, **options):
    """The command, at work."""
    return Command(arguments, folder, **options)


def end(process):
    """Exit code, and what was said."""
    out, error = process.communicate()
    return process.returncode, out, error


def result_of(arguments, folder):
    """The table that the command leaves."""
    if arguments[0] == "attack":
        return pd.read_parquet(folder / "out" / "attack.parquet")
    return fperr.Report.from_parquet(folder / "out" / "measurements.parquet").frame


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The command in this process, which takes the time of no start: exit code, and errors."""

    def run(arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fperr", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


def until(folder, pattern, process):
    """Wait for a file."""
    while not list((folder / "out").rglob(pattern)) and process.poll() is None:
        time.sleep(0.005)


def leftovers(folder):
    return [str(path) for path in folder.rglob(".*")]


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_network_that_is_finished_is_kept(stop, code, tmp_path):
    """The second network's rows are not there yet; the same command goes on with it."""
    for _ in range(5):  # a busy machine may deliver the signal after the last row
        process = start(MEASURE, tmp_path)
        until(tmp_path, "00-*/0000000.parquet", process)
        process.send_signal(stop)
        found, _, error = end(process)
        if found != 0:
            break
        shutil.rmtree(tmp_path / "out")
    assert found == code, error
    assert "Traceback" not in error
    kept = tmp_path / "out" / "rows" / "00-fashion_standard" / "0000000.parquet"
    assert len(fperr.Report.from_parquet(kept).frame) == 2
    before = kept.stat().st_mtime_ns
    if code == 130:
        assert "fperr: interrupted; the same command goes on from out" in error
        assert set(result_of(MEASURE, tmp_path)["network"]) == {"fashion_standard"}
    found, out, error = end(start(MEASURE, tmp_path))
    assert found == 0, error
    assert "fashion_standard: 2 of 2 images were measured before, and read from out/rows" in out
    assert kept.stat().st_mtime_ns == before
    images = data.fashion_mnist_1000().first(2)
    options = {"losses": ["ce"], "formats": ["float32"], "engine": "double_word"}
    alone = [
        fperr.measure(zoo.load(name), images.x, images.y, name=name, progress=False, **options)
        for name in ("fashion_standard", "fashion_saturated")
    ]
    frame = result_of(MEASURE, tmp_path)
    pd.testing.assert_frame_equal(frame, fperr.Report.merged(alone).frame, check_exact=True)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [MEASURE, ATTACK], ids=["measure", "attack"])
def test_kills_at_random_moments_lose_nothing(arguments, tmp_path):
    (tmp_path / "alone").mkdir()
    started = time.monotonic()
    code, _, error = end(start(arguments, tmp_path / "alone"))
    assert code == 0, error
    duration = time.monotonic() - started
    whole = result_of(arguments, tmp_path / "alone")
    draw, killed = random.Random(20), 0
    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        for _ in range(2):
            process = start(arguments, folder)
            time.sleep(duration * draw.uniform(0.3, 1.0))
            process.kill()
            killed += end(process)[0] == -9
        code, _, error = end(start(arguments, folder))
        assert code == 0, error
        assert "DamagedFileWarning" not in error
        frame = result_of(arguments, folder)
        pd.testing.assert_frame_equal(frame, whole, check_exact=True)
        assert leftovers(folder) == []
    assert killed > 5


@pytest.mark.parametrize("arguments", [MEASURE, ATTACK], ids=["measure", "attack"])
def test_two_at_once_end_with_one_result_and_one_refusal(arguments, tmp_path):
    first, second = (start(arguments, tmp_path) for _ in range(2))
    ends = sorted((end(first), end(second)), key=lambda each: each[0])
    if ends[1][0] == 2:
        assert "fperr: another run is at work in out: wait until it has ended" in ends[1][2]
    else:  # one began after the other had ended
        assert ends[1][0] == 0
    assert ends[0][0] == 0
    assert "Written" in ends[0][1]
    frame = result_of(arguments, tmp_path)
    assert len(frame) == (12 if arguments is ATTACK else 4)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("arguments", "limit"), [(MEASURE, 60_000), (ATTACK, 10_000)])
def test_a_full_disk_leaves_no_cut_file(arguments, limit, tmp_path):
    code, _, error = end(start(arguments, tmp_path, largest_file=limit))
    assert code == 2
    assert "Traceback" not in error
    assert "bytes): File too large. What was written before is whole: make room" in error
    assert leftovers(tmp_path) == []
    if arguments is MEASURE:
        assert not (tmp_path / "out" / "report.html").exists()
        assert len(result_of(arguments, tmp_path)) == 4  # the frame is written first
    assert end(start(arguments, tmp_path))[0] == 0  # the remedy
    assert len(result_of(arguments, tmp_path)) == (12 if arguments is ATTACK else 4)


def test_folders_that_cannot_be_used_are_said_before_the_work(here, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    for arguments in (MEASURE, ATTACK):
        code, error = here(arguments)
        assert code == 2
        assert "out is a symbolic link to" in error
        assert "samples" not in error


def test_overwriting_goes_through_no_link(here, tmp_path):
    """And what else lies in the folder stays."""
    victim, notes = tmp_path / "victim", tmp_path / "out" / "notes.txt"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    notes.write_text("mine")
    for name in ("report.html", "measurements.parquet", "relative_error.png", "command.json"):
        (tmp_path / "out" / name).symlink_to(victim)
    command = [MEASURE[0], MEASURE[1], *MEASURE[3:]]
    code, error = here(command)
    assert code == 2
    assert "--overwrite" in error
    code, error = here([*command, "--overwrite"])
    assert code == 0, error
    assert victim.read_text() == "precious"
    assert notes.read_text() == "mine"
    assert len(result_of(command, tmp_path)) == 2
    before = (tmp_path / "out" / "report.html").stat().st_mtime_ns
    code, error = here([*command, "--loss-scale", "2"])
    assert code == 2
    assert "out holds another command (--loss-scale 1.0 there, 2.0 here)" in error
    assert (tmp_path / "out" / "report.html").stat().st_mtime_ns == before
    code, error = here([*command, "--loss-scale", "2", "--overwrite"])
    assert code == 0, error
    assert notes.read_text() == "mine"


def attacked(folder, **options):
    images = data.fashion_mnist_1000().first(5)
    given = {"radius": 0.05, "steps": 3, "batch_size": 2, **options}
    return attack_in_batches(zoo.load("fashion_standard"), images.x, images.y, folder, **given)


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_byte_in_any_file_of_an_attack_is_noticed(seed, tmp_path):
    whole = attacked(tmp_path)
    draw = random.Random(seed)
    names = sorted(os.listdir(tmp_path))
    assert names == [f"{i:07d}.safetensors" for i in (0, 2, 4)] + ["attack.json"]
    for name in names:
        path = tmp_path / name
        content = path.read_bytes()
        for damage in ("flip", "cut", "empty"):
            changed = bytearray(content)
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            cut = content[: draw.randrange(len(content))]
            path.write_bytes({"flip": changed, "cut": cut, "empty": b""}[damage])
            if name == "attack.json":
                with pytest.raises(ValueError, match=r"attack.json is damaged"):
                    attacked(tmp_path)
                path.write_bytes(content)
            else:
                with pytest.warns(DamagedFileWarning, match=f"{name} is damaged"):
                    pd.testing.assert_frame_equal(attacked(tmp_path), whole, check_exact=True)
    pd.testing.assert_frame_equal(attacked(tmp_path), whole, check_exact=True)


def test_batches_that_vanish_in_an_attack_are_noticed(tmp_path):
    def vanish(_):
        (tmp_path / "0000000.safetensors").unlink(missing_ok=True)

    with pytest.raises(StorageError, match=r"0000000.safetensors of it are gone"):
        attacked(tmp_path, advance=vanish)
    assert len(attacked(tmp_path)) == 5  # the remedy


def test_attacks_of_version_0_7_are_refused(tmp_path):
    (tmp_path / "attack.json").write_text('{"inputs": "abc", "batch_size": 2}')
    with pytest.raises(ValueError, match="or another version of fperr wrote it: give another fold"):
        attacked(tmp_path)
    assert len(attacked(tmp_path / "another")) == 5


def test_a_network_with_other_numbers_is_another_attack(tmp_path):
    """Numbers that are no weights show in what is captured, however near the logits are."""
    model = zoo.load("fashion_standard")
    attacked(tmp_path)
    images = data.fashion_mnist_1000().first(5)
    options = {"radius": 0.05, "steps": 3, "batch_size": 2}

    def scaled(factor):
        other = zoo.load("fashion_standard")
        forward = other.forward
        other.forward = lambda x: forward(x) * factor
        return attack_in_batches(other, images.x, images.y, tmp_path, **options)

    for factor in (1 + 1e-5, 1.1):
        with pytest.raises(ValueError, match=r"holds another attack \(.*network .* there, .* here"):
            scaled(factor)
    assert torch.equal(model(images.x[:1]), zoo.load("fashion_standard")(images.x[:1]))


def test_the_page_of_a_file_that_is_no_measurement(here, tmp_path):
    np.savez(tmp_path / "m.npz", x=np.zeros(3))
    Path(tmp_path / "m.npz").rename(tmp_path / "m.parquet")
    code, error = here(["report", "m.parquet"])
    assert code == 2
    assert "fperr: m.parquet cannot be read as Parquet" in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == ["m.parquet"]
