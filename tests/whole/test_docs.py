"""`make docs` fails on what is wrong with a page: a planted broken link is one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def built(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The build of a site of one page, with the settings and the strictness of `make docs`."""
    pytest.importorskip("sphinx", reason="needs the extra [docs]")
    for name in ("conf.py", "docstring_markup.py", "public_names.py"):
        shutil.copy(DOCS / name, folder)
    for name in ("reference", "_static"):
        (folder / name).mkdir()
    (folder / "index.md").write_text(text)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html"]
    return subprocess.run(
        [*command, str(folder), str(folder / "site")], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# Title\n\n[here](index.md)\n", ""),
        ("# Title\n\n[there](nothing.md)\n", "nothing.md"),
        ("# Title\n\n[there](index.md#nowhere)\n", "nowhere"),
        ("# Title\n\n![a picture](missing.png)\n", "missing.png"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path, text, fault):
    done = built(tmp_path, text)
    assert (done.returncode != 0) == bool(fault)
    assert fault in done.stderr
