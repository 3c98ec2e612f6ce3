"""The arithmetics are generic, so that mypy notices numbers of one system handed to another."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

PREAMBLE = """
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import numbers
from fperr.exact.double_word.numbers import DoubleWords
from fperr.exact.interpreter import Interpreter, SavedValues
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.operations.elementwise import relu
"""
MIXED = {
    "a ball in pairs of float64": """
def sum_of(a: DoubleWords, b: BallArray) -> object:
    return numbers.add(a, b)
""",
    "pairs of float64 in balls": """
def sum_of(A: BallArithmetic, a: BallArray, b: DoubleWords) -> object:
    return A.add(a, b)
""",
    "pairs of float64 in an operation's meaning": """
def activation(A: MpArithmetic, a: DoubleWords) -> MpArray:
    return relu(A, a)
""",
    "pairs of float64 in a pullback of mpmath": """
def product(n: Interpreter[MpArray], s: SavedValues[MpArray], v: DoubleWords) -> object:
    return n.products(s, v)
""",
    "saved values of another arithmetic": """
def product(n: Interpreter[MpArray], s: SavedValues[BallArray], v: MpArray) -> object:
    return n.products(s, v)
""",
}
MATCHING = """
def sum_of_pairs(a: DoubleWords, b: DoubleWords) -> object:
    return numbers.add(a, b)
def sum_of_balls(A: BallArithmetic, a: BallArray, b: BallArray) -> BallArray:
    return A.add(a, b)
def activation(A: MpArithmetic, a: MpArray) -> MpArray:
    return relu(A, a)
def product(n: Interpreter[MpArray], s: SavedValues[MpArray], v: MpArray) -> MpArray:
    return n.products(s, v)
"""


@pytest.mark.slow
def test_mypy_notices_mixed_arithmetics_and_nothing_else(tmp_path):
    files = {f"mixed_{i}.py": snippet for i, snippet in enumerate(MIXED.values())}
    for name, snippet in {**files, "matching.py": MATCHING}.items():
        (tmp_path / name).write_text(PREAMBLE + snippet)
    output = _mypy(sorted(tmp_path.glob("*.py")))
    errors = [line for line in output.splitlines() if ": error: " in line]
    for (name, snippet), mixture in zip(files.items(), MIXED, strict=True):
        own_errors = [line for line in errors if name in line]
        last_line = (PREAMBLE + snippet).rstrip().count("\n") + 1
        assert own_errors, f"mypy accepts {mixture}:\n{output}"
        assert all(f":{last_line}: " in line for line in own_errors), output
    assert not [line for line in errors if "mixed_" not in line], output


def _mypy(files):
    """The output of mypy, with the project's settings, on a few files that import the project."""
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml"]
    result = subprocess.run(
        [*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr  # 2: mypy itself failed
    return result.stdout
