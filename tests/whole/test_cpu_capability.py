"""What tests say of float kernels' errors holds for every vector width that this CPU has.

PyTorch compiles its kernels several times, and takes the widest that the CPU runs: width, order of
additions, fused products, and exp and log differ, and so do the bits of many results. A number
read off one machine shows here on that machine. Selected are the test files that judge results of
these kernels: the bounds and the attempts to refute them, the measurement and its stages, losses
and scales, formats and precision switches, exact gradients where they are held against float ones
or follow a float run, the recorder, and the models of users. Tests of attacks compare two runs of
the same kernels; figures, pages, the command line, data and layouts take results as they come.

The libraries behind linear and convolutional layers are held to the same width as PyTorch: oneDNN
by name, MKL where it listens.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

# From the narrowest on: what PyTorch calls it, and the limits for oneDNN and MKL
WIDTHS = {
    "default": ("DEFAULT", "SSE41", "SSE4_2"),
    "avx2": ("AVX2", "AVX2", "AVX2"),
    "avx512": ("AVX512", "DEFAULT", "AVX512"),
}
TESTS = Path(__file__).parents[1]
FILES = (
    "bounds/test_bounds.py",
    "validation/test_validation.py",
    "measurement/test_measure.py",
    "gradient_error/test_stages.py",
    "losses/test_losses.py",
    "theory/test_scaling.py",
    "whole/test_published_numbers.py",
    "test_formats.py",
    "test_kernel_switches.py",
    "exact/operations/test_operations.py",
    "exact/test_adaptive_precision.py",
    "exact/test_stacked.py",
    "exact/double_word/test_edges.py",
    "exact/test_capture.py",
    "measurement/test_branches_and_layers.py",
    "recording/test_recording.py",
    "networks/test_user_models.py",
    "exact/audit/test_value_audit.py",
    "exact/test_random_graphs.py",
    "exact/test_singularities.py",
    "networks/test_digits.py",
    "whole/test_masked_classes.py",
)
PYTEST = """\
import sys
import pytest
import torch
print("capability:", torch.backends.cpu.get_cpu_capability(), flush=True)
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Run:
    """A run of pytest in a process of its own.

    Attributes:
        capability: what PyTorch said, in that process, it computes with.
        exit_status: of pytest.
        passed: names of test modules of which a test passed.
        failed: names of tests that did not pass, and of modules that could not be read.
        output: of pytest.
    """

    capability: str
    exit_status: int
    passed: set[str]
    failed: list[str]
    output: str


def run(width: str | None, files: list[Path], folder: Path) -> Run:
    """The quick tests of these files, with kernels of a width, or of the CPU's own."""
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    if width is not None:
        environment["ATEN_CPU_CAPABILITY"] = width
    if width in WIDTHS:
        _, environment["ONEDNN_MAX_CPU_ISA"], environment["MKL_ENABLE_INSTRUCTIONS"] = WIDTHS[width]
    report = folder / f"{width}.xml"
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    process = subprocess.run(
        [sys.executable, "-c", PYTEST, *options, *map(str, files)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    capability = re.search(r"^capability: (.*)$", process.stdout, re.MULTILINE)
    assert capability is not None, process.stdout
    tests = list(ElementTree.parse(report).iter("testcase"))
    outcomes = [(test, {child.tag for child in test}) for test in tests]
    return Run(
        capability[1],
        process.returncode,
        {
            test.get("classname", "").rpartition(".")[2]
            for test, tags in outcomes
            if not tags & {"failure", "error", "skipped"}
        },
        [test.get("name", "") for test, tags in outcomes if tags & {"failure", "error"}],
        process.stdout,
    )


@pytest.fixture(scope="module")
def widest(tmp_path_factory):
    """What PyTorch takes on this CPU, whatever it was told for the process of this test."""
    folder = tmp_path_factory.mktemp("widest")
    file = folder / "test_nothing.py"
    file.write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    return run(None, [file], folder).capability


def skip_unless_possible(width: str, widest: str) -> None:
    """Skip a width that this CPU lacks: PyTorch would take it at its word, and crash."""
    names = [name for name, _, _ in WIDTHS.values()]
    widths_here = names[: names.index(widest) + 1] if widest in names else ["DEFAULT"]
    if WIDTHS[width][0] not in widths_here:
        pytest.skip(f"this CPU's widest kernels are {widest}: it has no {WIDTHS[width][0]}")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_what_tests_say_of_float_kernels_holds_for_every_width(width, widest, tmp_path):
    skip_unless_possible(width, widest)
    result = run(width, [TESTS / file for file in FILES], tmp_path)
    assert result.capability == WIDTHS[width][0], result.output
    assert result.failed == [], result.output
    assert result.exit_status == 0, result.output
    assert result.passed == {Path(file).stem for file in FILES}


READ_OFF = """\
import torch

def test_any_width():
    assert torch.ones(100).sum() == 100

def test_read_off_one_width():
    assert torch.backends.cpu.get_cpu_capability() != "DEFAULT"
"""


@pytest.mark.slow
def test_a_test_that_fails_for_one_width_is_noticed(widest, tmp_path):
    file = tmp_path / "test_control.py"
    file.write_text(READ_OFF, encoding="utf-8")
    narrow = run("default", [file], tmp_path)
    assert (narrow.capability, narrow.exit_status) == ("DEFAULT", pytest.ExitCode.TESTS_FAILED)
    assert narrow.failed == ["test_read_off_one_width"]
    assert narrow.passed == {"test_control"}  # of its other test
    if widest == "DEFAULT":
        pytest.skip("this CPU has one width only: what passes for a wider one cannot be seen")
    wide = run(None, [file], tmp_path)
    assert (wide.exit_status, wide.failed) == (pytest.ExitCode.OK, [])


@pytest.mark.slow
def test_the_width_is_what_was_computed_with_and_not_what_was_asked_for(widest, tmp_path):
    file = tmp_path / "test_control.py"
    file.write_text(READ_OFF, encoding="utf-8")
    assert run("unheard-of", [file], tmp_path).capability == widest
    with pytest.raises(pytest.skip.Exception, match="it has no AVX512"):
        skip_unless_possible("avx512", "AVX2")
    with pytest.raises(pytest.skip.Exception, match="it has no AVX2"):
        skip_unless_possible("avx2", "SVE256")


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_noticed(tmp_path):
    file = tmp_path / "test_control.py"
    file.write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    result = run(None, [file], tmp_path)
    assert result.exit_status == pytest.ExitCode.INTERRUPTED
    assert result.passed == set()
    assert len(result.failed) == 1
