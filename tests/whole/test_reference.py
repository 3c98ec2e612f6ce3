"""Every public name stands on a page of the API reference, at an anchor of its own."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from docs import docstring_markup
from docs.public_names import public_names

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference"
_ENTRY = re.compile(r"^\.\. auto(?:function|class|data|exception|module):: (\S+)$", re.MULTILINE)
_IN_TABLE = re.compile(r"^   (fperr\.\S+)$", re.MULTILINE)
_ELSEWHERE = {"fperr.FperrError": "fperr.errors.FperrError"}  # a second door to the same class


def entries() -> list[str]:
    """What the pages of the modules describe, in order."""
    return [
        name for page in (PAGES / "api").glob("*.md") for name in _ENTRY.findall(page.read_text())
    ]


def missing(names: Iterable[str], described: Iterable[str]) -> list[str]:
    """The names that are not described, under their own or their first name."""
    there = set(described)
    return [name for name in names if _ELSEWHERE.get(name, name) not in there]


def test_every_public_name_is_described():
    assert missing(public_names(), entries()) == []


def test_every_name_is_described_once():
    described = entries()
    assert sorted(described) == sorted(set(described))


def test_every_public_name_is_in_the_tables():
    listed = _IN_TABLE.findall((PAGES / "api.md").read_text())
    expected = {
        name for name, value in public_names().items()
        if not inspect.ismodule(value) and name not in _ELSEWHERE
    }  # fmt: skip
    assert sorted(listed) == sorted(expected)


def test_a_name_that_is_not_described_is_found():
    """Negative control of the tests above."""
    assert missing([*public_names(), "fperr.planted"], entries()) == ["fperr.planted"]
    without = [name for name in entries() if name != "fperr.losses.mifpe"]
    assert missing(public_names(), without) == ["fperr.losses.mifpe"]


@pytest.mark.slow
def test_the_pages_build_without_warnings_and_have_an_anchor_for_every_name(tmp_path):
    inventory = pytest.importorskip("sphinx.util.inventory")
    source, build = reference_alone(tmp_path / "source"), tmp_path / "html"
    command = "-m", "sphinx", "-W", "--keep-going", "-q", "-c", PAGES.parent, source, build
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    content = (build / "objects.inv").read_bytes()
    objects = inventory.InventoryFile.loads(content, uri="").data
    anchors = {name for kind in objects if kind.startswith("py:") for name in objects[kind]}
    assert missing(public_names(), anchors) == []
    assert missing(["fperr.planted"], anchors) == ["fperr.planted"]
    page = (build / "api" / "losses.html").read_text()
    assert 'id="fperr.losses.mifpe"' in page
    assert "<p>The losses without a parameter, by name: everything" in page  # a constant's text


def reference_alone(folder: Path) -> Path:
    """A copy of the API pages with a first page of their own, so that other pages do not matter."""
    (folder / "api").mkdir(parents=True)
    for page in (PAGES / "api.md", *(PAGES / "api").glob("*.md")):
        (folder / page.relative_to(PAGES)).write_text(page.read_text())
    (folder / "index.md").write_text("# fperr\n\n```{toctree}\napi\n```\n")
    return folder


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("x: Inputs (batch, *shape), |v|_2.", r"x: Inputs (batch, \*shape), \|v\|_2."),
        ("of `a * b`, and *meant* and **bold**", "of `a * b`, and *meant* and **bold**"),
        ("* an item with 2**-24 and `.plot()`", r"* an item with 2\*\*-24 and ``.plot()``"),
        ("**inputs: Further tensors", "**inputs: Further tensors"),
        (">>> 2 * 3", ">>> 2 * 3"),
        ("NDArray of object_ numbers", r"NDArray of object\_ numbers"),
    ],
)
def test_what_is_no_markup_is_escaped(written, expected):
    assert list(docstring_markup.restructured([written])) == [expected]


def test_literal_blocks_and_examples_stay_as_they_are():
    lines = ["as in::", "", "    a * b", "", "and a * b", ">>> a * b", "'*'", "", "a *"]
    escaped = [*lines[:4], r"and a \* b", *lines[5:8], r"a \*"]
    assert list(docstring_markup.restructured(lines)) == escaped
