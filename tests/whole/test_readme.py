"""The README: its snippets print what it shows, its links lead somewhere, and it stays short."""

import re
from pathlib import Path

import pytest

from tests.makers.printed import printed, says_the_same

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MOST_CHARACTERS = 8_000
_SNIPPET = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)|src=\"([^\"]+)\"")


def snippets(text: str) -> list[tuple[str, str]]:
    """The Python blocks of the text, each with the output that follows it."""
    return _SNIPPET.findall(text)


def missing_links(text: str, root: Path) -> list[str]:
    """The links to files that are not there."""
    return [a or b for a, b in _LINK.findall(text) if not (root / (a or b)).exists()]


def test_it_is_read_in_two_minutes():
    assert len(README.read_text()) <= MOST_CHARACTERS


def test_its_snippets_print_what_it_shows():
    """They share their names, as in a session."""
    names: dict[str, object] = {}
    found = snippets(README.read_text())
    assert len(found) == 4
    for code, shown in found:
        assert says_the_same(shown, printed(code, names))


@pytest.mark.parametrize(
    ("shown", "fresh"),
    [
        ("10 images", "16 images"),
        ("10 images", "10 pictures"),
        ("10 images", "10 images of 12"),
        ("an error of 1e-07", "an error of 4e-07"),
        ("an error of 0.004", "an error of 0.013"),
        ("1.0 points", "-5.0 points"),
    ],
)
def test_another_output_is_noticed(shown, fresh):
    ((code, text),) = snippets(f"```python\nprint({fresh!r})\n```\n\n```text\n{shown}\n```\n")
    assert not says_the_same(text, printed(code, {}))
    assert says_the_same(text, shown)


def test_its_links_lead_somewhere():
    assert missing_links(README.read_text(), ROOT) == []


@pytest.mark.parametrize("text", ["[a](docs/nothing.md)", '<img src="figures/nothing.png">'])
def test_a_broken_link_is_noticed(text):
    assert len(missing_links(text, ROOT)) == 1
