"""Every notebook runs from top to bottom, is a story without outputs, and stays small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("default")  # what Jupyter's own libraries warn of is theirs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert path.stat().st_size < 100_000
    assert notebook.cells[-1].source.startswith("## Conclusion")
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
