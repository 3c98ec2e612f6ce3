"""Every notebook is a story with its outputs, small, and prints again what is stored."""

import ast
import copy
import re
from types import ModuleType

import nbformat
import pytest

import fperr
from tests.makers.notebook_numbers import HALF_TAG, agree, differences, lines
from tests.makers.notebooks import NOTEBOOKS, executed, kernels

QUICK = "03_error_bounds"
assert QUICK in [path.stem for path in NOTEBOOKS]
MOST_BYTES = 300_000
SHORTEST_ALT = 40  # letters: fewer name a picture and do not say what it shows
# paths and addresses of one machine and one run
UNWANTED = re.compile(
    r"(?:^|[\s'\"(])(?:/(?:home|root|tmp|work|usr|opt|Users|var)/|[A-Z]:\\)|site-packages"
    r"|Traceback| at 0x[0-9a-f]"
)
PUBLIC = {f"fperr.{name}" for name in fperr.__all__} | {"fperr", "fperr.data"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(cell):
    return ast.parse("\n".join(x for x in cell.source.splitlines() if not x.startswith("%")))


def tags(cell):
    return cell.metadata.get("tags", ())


def shows(cell):
    """Whether a cell prints, or ends with an expression whose value is shown."""
    body = tree(cell).body
    printed = (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "print"
        for statement in body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )
    is_shown = bool(body) and isinstance(body[-1], ast.Expr) and not cell.source.endswith(";")
    is_setting = is_shown and "filterwarnings" in ast.unparse(body[-1])
    return any(printed) or (is_shown and not is_setting)


def texts(cell):
    return [line for output in cell.outputs for line in lines(output)]


@each_notebook
def test_the_notebook_is_executed_and_small(path):
    notebook = read(path)
    assert path.stat().st_size < MOST_BYTES
    assert notebook.cells[-1].source.startswith("## Conclusion")
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert set(notebook.metadata["fperr"]) == set(kernels())
    silent = [cell.id for cell in code_cells(notebook) if shows(cell) and not cell.outputs]
    assert not silent


def faults(cell):
    """What no output may hold: a page cannot show it, or it is of one machine."""
    for output in cell.outputs:
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"{output.output_type} {output.get('name')}"
        yield from (kind for kind in output.get("data", ()) if "widget" in kind)
    yield from (line for line in texts(cell) if UNWANTED.search(line))


@each_notebook
def test_outputs_are_free_of_machines_and_faults(path):
    assert [fault for cell in code_cells(read(path)) for fault in faults(cell)] == []


def test_a_fault_in_an_output_is_noticed():
    new = nbformat.v4.new_output
    for output in (
        new("stream", name="stderr", text="0 %"),
        new("stream", name="stdout", text="in /tmp/a/b.py:13"),
        new("execute_result", {"text/plain": "<Legend at 0x7f2ffde7cfd0>"}),
        new("error", ename="ValueError", evalue="x", traceback=[]),
        new("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
    ):
        assert list(faults(nbformat.v4.new_code_cell(outputs=[output])))


@each_notebook
def test_pictures_have_texts(path):
    pictures = [
        cell
        for cell in code_cells(read(path))
        if any("image/png" in output.get("data", ()) for output in cell.outputs)
    ]
    alts = [cell.metadata["mystnb"]["image"]["alt"] for cell in pictures]
    assert all(len(alt) >= SHORTEST_ALT for alt in alts)
    assert len(set(alts)) == len(alts)


@each_notebook
def test_assertions_are_folded(path):
    """They are for continuous integration; a reader may open them."""
    cells = code_cells(read(path))
    asserting = [c for c in cells if any(isinstance(n, ast.Assert) for n in ast.walk(tree(c)))]
    assert asserting
    assert all("hide-cell" in tags(cell) for cell in asserting)
    assert "hide-input" in tags(cells[0])


def private_modules(notebook):
    """The modules of this package that cells import and that are not public."""
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(tree(cell))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return {name for name in names if name.partition(".")[0] == "fperr"} - PUBLIC


@each_notebook
def test_private_modules_are_named_as_such(path):
    notebook = read(path)
    story = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for name in private_modules(notebook):
        package = ".".join(name.split(".")[:2])
        named = (name, package)
        assert any("private" in text and any(f"`{n}`" in text for n in named) for text in story)


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


@each_notebook
def test_what_the_notebook_names_is_there(path):
    """In the time of no kernel: code that cannot be read, and names that have moved."""
    statements = [statement for cell in code_cells(read(path)) for statement in tree(cell).body]
    assert not missing(ast.Module(statements, []))


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
def test_a_fresh_run_prints_what_is_stored(path):
    stored = read(path)
    has_same_kernels = stored.metadata["fperr"] == kernels()
    assert differences(stored, executed(path), has_same_kernels=has_same_kernels) == []


@pytest.mark.parametrize(
    ("stored", "printed"),
    [
        ("36 of 40 withstood", "35 of 40 withstood"),
        ("36 of 40 withstood", "36 of 40 stood"),
        ("accuracy 0.86", "accuracy 0.88"),
        ("float32 10^-7", "float32 10^-5"),
        ("bound 3e-05", "bound 5e-05"),
        ("1,000 images", "1,001 images"),
        ("margin -3", "margin 3"),
    ],
)
def test_another_number_is_noticed(stored, printed):
    assert not agree(stored, printed, is_half=False)
    assert agree(stored, stored, is_half=False)


def test_only_the_last_digit_may_round_to_either_side():
    assert agree("0.86 of 10^-7", "0.87 of 10^-6", is_half=False)
    assert agree("float16 0.010, 7 flips", "float16 0.029, 20 flips", is_half=True)
    assert not agree("float16 0.010", "float16 0.031", is_half=True)
    assert not agree("float16 0.010", "float16 -0.010", is_half=True)


def planted(notebook):
    """Copies of a notebook, each with one number of an output changed beyond what may differ."""
    for i, cell in enumerate(notebook.cells):
        for k, output in enumerate(cell.get("outputs", ())):
            if output.output_type != "stream":
                continue
            found = re.search(r"(?<![\w.^])\d+(?= of )", output.text)
            if found is None:
                continue
            changed = copy.deepcopy(notebook)
            new = str(4 * int(found[0]) + 1)  # further than a half format may be
            text = output.text[: found.start()] + new + output.text[found.end() :]
            changed.cells[i].outputs[k].text = text
            yield changed


@each_notebook
def test_a_planted_number_is_found(path):
    notebook = read(path)
    assert differences(notebook, copy.deepcopy(notebook), has_same_kernels=True) == []
    changed = list(planted(notebook))
    assert changed
    assert all(differences(notebook, other, has_same_kernels=True) for other in changed)


def test_half_formats_are_left_out_on_other_kernels():
    def made(text, cell_tags=()):
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        cell = nbformat.v4.new_code_cell(outputs=[output], metadata={"tags": list(cell_tags)})
        cell.id = "a"
        return nbformat.v4.new_notebook(cells=[cell])

    pair = made("float16: 5 flips"), made("float16: 50 flips")
    assert differences(*pair, has_same_kernels=True)
    assert not differences(*pair, has_same_kernels=False)
    tagged = made("5 flips", [HALF_TAG]), made("50 flips", [HALF_TAG])
    assert not differences(*tagged, has_same_kernels=False)
    assert differences(made("float32: 5"), made("float32: 6"), has_same_kernels=False)
