"""The code on the pages runs, and prints what they show.

A page's blocks run in the order of the page, in a folder of their own:

* a python block that begins with `# name.py` is written to that file, and so is a toml block;
* other python blocks share one namespace;
* the `fperr` commands of a console block end with code 0, or with the code that a comment before
  the block names: `<!-- exit code 2 -->`;
* a text block shows what the block before it printed, and its numbers are near those that are
  printed (see `tests.makers.printed`), unless a comment says `<!-- numbers vary -->`: of seconds.

A block after `<!-- not run: reason -->` is left out.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot

import tests.makers.libraries  # noqa: F401 (makes torchvision's absence harmless)
from tests.makers.commands import Command
from tests.makers.printed import printed, stands_in

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    DOCS / "install.md",
    DOCS / "networks.md",
    DOCS / "reference" / "commands.md",
    *sorted(path for path in (DOCS / "how_to").glob("*.md") if path.name != "index.md"),
]
BLOCK = re.compile(
    r"(?:<!-- (?P<comment>[^>]*?) -->\n+)?"
    r"^```(?P<kind>[{}\w]+)(?: \S+)?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, what stands in it, and the comment before it."""

    kind: str
    body: str
    comment: str

    @property
    def is_run(self) -> bool:
        return not self.comment.startswith("not run")

    @property
    def numbers_vary(self) -> bool:
        return self.comment == "numbers vary"

    @property
    def exit_code(self) -> int:
        expected = re.fullmatch(r"exit code (\d+)", self.comment)
        return int(expected[1]) if expected else 0


def blocks_of(text: str) -> list[Block]:
    """The python, console and text blocks of a page."""
    blocks = []
    for match in BLOCK.finditer(text):
        kind, body = match["kind"], match["body"]
        if kind in ("python", "console", "text", "toml"):
            blocks.append(Block(kind, body, match["comment"] or ""))
    return blocks


def run_console(block: Block, folder: Path) -> str:
    """Run a console block's commands; what the last one printed."""
    output = ""
    for line in re.sub(r"\\\n\s*", "", block.body).splitlines():
        if not line.startswith("$ fperr "):
            continue
        arguments = shlex.split(line.removeprefix("$ fperr "), comments=True)
        result = Command(arguments, cwd=folder)
        output, errors = result.communicate()
        assert result.returncode == block.exit_code, f"{line}\n{output}\n{errors}"
        output = output or errors
    return output


def run_page(blocks: list[Block], folder: Path) -> None:
    """Run the blocks of a page in a folder.

    Raises:
        AssertionError: A block prints something else than the page shows, or a command fails.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    output = ""
    for block in blocks:
        name = re.match(r"# (\w+\.(?:py|toml))\n", block.body)
        if not block.is_run:
            continue
        if block.kind == "text":
            for part in re.split(r"^\[\.\.\.\]\n", block.body, flags=re.MULTILINE):
                is_shown = stands_in(part, output, numbers_vary=block.numbers_vary)
                assert is_shown, f"shown:\n{part}\nprinted:\n{output}"
        elif block.kind == "console":
            output = run_console(block, folder)
        elif name:
            (folder / name[1]).write_text(block.body)
        elif block.kind == "python":
            output = printed(block.body, namespace)


# their commands and measurements take more than 20 s
SLOW = {
    "campaigns",
    "commands",
    "explain_a_gap",
    "half_formats",
    "install",
    "own_network",
    "reviewer_checklist",
}


def marked(page: Path) -> object:
    """The page as a parameter."""
    return pytest.param(page, marks=[pytest.mark.slow] if page.stem in SLOW else [], id=page.stem)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # of pyautoattack
@pytest.mark.filterwarnings("ignore:dL/dz was exactly 0 at step")  # what the recorder is shown for
@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    try:
        run_page(blocks_of(page.read_text()), tmp_path)
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_is_not_run_has_a_reason(page):
    text = page.read_text()
    blocks = blocks_of(text)
    assert len(blocks) == len(re.findall(r"^```(python|console|text|toml)", text, re.M))
    for block in blocks:
        assert re.fullmatch(r"|exit code \d+|numbers vary|not run: .+", block.comment)


def test_a_wrong_page_is_noticed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_page(blocks_of("```python\n1 / 0\n```\n"), tmp_path)
    shown = "```python\nprint('3 images')\n```\n\n```text\n{}\n```\n"
    run_page(blocks_of(shown.format("4 images")), tmp_path)
    with pytest.raises(AssertionError, match="shown"):
        run_page(blocks_of(shown.format("4 pictures")), tmp_path)
    with pytest.raises(AssertionError, match="shown"):
        run_page(blocks_of(shown.format("9 images")), tmp_path)
    varying = shown.replace("```text", "<!-- numbers vary -->\n```text")
    run_page(blocks_of(varying.format("9 images")), tmp_path)
    run_page(blocks_of("<!-- not run: it fails -->\n```python\n1 / 0\n```\n"), tmp_path)
    with pytest.raises(AssertionError, match="unknown network"):
        run_page(blocks_of("```console\n$ fperr measure nothing_of_that_name\n```\n"), tmp_path)
    run_page(
        blocks_of("<!-- exit code 2 -->\n```console\n$ fperr measure nothing_of_that_name\n```\n"),
        tmp_path,
    )
