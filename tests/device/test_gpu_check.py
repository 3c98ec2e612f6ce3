"""The benchmark of `make gpu-check`, tried on the CPU; on a card it counts waits, too."""

import subprocess
import sys

import pytest
import torch

from tests.gpu_check import Sizes, benchmark


def test_without_a_card_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    command = [sys.executable, "-m", "tests.gpu_check", "--out", str(tmp_path / "check.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PyTorch sees no CUDA device here" in done.stderr
    assert not (tmp_path / "check.md").exists()


def test_its_tables_have_a_row_for_each_format_and_engine(device_or_cpu):
    text = benchmark(device_or_cpu, Sizes(attacked=4, exact=2, steps=2))
    for word in ("fashion_standard", "bfloat16", "double_word", "waits a step", "÷ float32"):
        assert word in text
