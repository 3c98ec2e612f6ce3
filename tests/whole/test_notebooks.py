"""Every notebook runs from top to bottom, is a story without outputs, and stays small."""

import ast
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
QUICK = "03_error_bounds"
assert QUICK in [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_a_story_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert path.stat().st_size < 100_000
    assert notebook.cells[-1].source.startswith("## Conclusion")


def missing(tree):
    """What the code imports from a module, or takes of one, that is not there."""
    names = {}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "imports", "exec"), names)

    def value(node):
        """What an imported name, or a module's attribute, stands for; None where none knows."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        owner = value(node.value) if isinstance(node, ast.Attribute) else None
        return getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None

    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    taken = [(value(node.value), node.attr) for node in attributes]
    modules = [(owner, name) for owner, name in taken if isinstance(owner, ModuleType)]
    assert modules
    return [f"{owner.__name__}.{name}" for owner, name in modules if not hasattr(owner, name)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_notebook_names_is_there(path):
    """In the time of no kernel: code that cannot be read, and names that have moved."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if not line.startswith("%")]
    assert not missing(ast.parse("\n".join(lines)))


def test_a_name_that_has_moved_is_noticed():
    code = "from fperr import exact\nexact.gradient\nexact.no_such_name"
    assert missing(ast.parse(code)) == ["fperr.exact.no_such_name"]
    with pytest.raises(ImportError):
        missing(ast.parse("from fperr import no_such_name\nno_such_name.x"))


@pytest.mark.filterwarnings("default")  # what Jupyter's own libraries warn of is theirs
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem == QUICK else pytest.mark.slow, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_the_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
