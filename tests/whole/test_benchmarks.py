"""The benchmarks are what asv can run, and a ratio comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMED = ROOT / "tests" / "benchmarks" / "timed"
CONFIGURATION = json.loads((ROOT / "tests" / "benchmarks" / "asv.conf.json").read_text())
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asv needs a git checkout")


def asv(folder, *arguments, benchmarks=TIMED):
    """Run asv with results in a folder of the test's own."""
    own = CONFIGURATION | {
        "repo": str(ROOT),
        "benchmark_dir": str(benchmarks),
        **{f"{kind}_dir": str(folder / kind) for kind in ("env", "results", "html")},
    }
    (folder / "asv.conf.json").write_text(json.dumps(own))
    environment = os.environ | {"ASV_PYTHONPATH": str(ROOT), "HOME": str(folder)}
    command = [sys.executable, "-m", "asv", "--config", str(folder / "asv.conf.json"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_asv_can_call_every_benchmark(tmp_path):
    done = asv(tmp_path, "check", "--environment", "existing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No problems found" in done.stdout


def test_a_benchmark_that_asv_cannot_call_is_noticed(tmp_path):
    """Negative control of the test above."""
    (tmp_path / "timed").mkdir()
    (tmp_path / "timed" / "__init__.py").touch()
    (tmp_path / "timed" / "wrong.py").write_text("def track_two(a, b):\n    return 1\n")
    done = asv(tmp_path, "check", "--environment", "existing", benchmarks=tmp_path / "timed")
    assert done.returncode != 0
    assert "wrong number of arguments" in done.stdout


@pytest.mark.slow
def test_asv_measures_a_ratio(tmp_path):
    assert asv(tmp_path, "machine", "--yes").returncode == 0
    done = asv(
        tmp_path, "run", "--environment", "existing", "--set-commit-hash", "HEAD",
        "--bench", r"losses.*track_value_and_gradient",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = (tmp_path / "results").glob("*/*-existing-*.json")
    ((ratios, *_),) = json.loads(kept.read_text())["results"].values()
    assert len(ratios) == 2
    assert all(0.1 < ratio < 100 for ratio in ratios)  # a ratio of times of two losses
