"""The public names of fperr, and their docstrings, for the pages and for the tests."""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1] / "fperr"
MODULES_WITH_ALL = (
    "fperr",
    "fperr.exact",
    "fperr.bounds",
    "fperr.losses",
    "fperr.zoo",
    "fperr.data",
    "fperr.formats",
)
MODULES_WITHOUT_ALL = ("fperr.errors",)


def public_names() -> dict[str, object]:
    """The public objects by full name, `fperr.losses.mifpe`, in the order of the modules."""
    names: dict[str, object] = {"fperr.data": importlib.import_module("fperr.data")}
    for module in map(importlib.import_module, MODULES_WITH_ALL):
        names |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for module in map(importlib.import_module, MODULES_WITHOUT_ALL):
        names |= {f"{module.__name__}.{name}": value for name, value in own_names(module)}
    return names


def own_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What a module without `__all__` offers: its own functions, classes and constants."""
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__
        is_documented = name.isupper() or (is_own and _is_documented_itself(value))
        if not name.startswith("_") and is_documented:
            yield name, value


def docstring(name: str, value: object) -> str:
    """The docstring of a public object; for a constant, the text below its assignment."""
    if _is_documented_itself(value):
        return inspect.getdoc(value) or ""
    short = name.rpartition(".")[2]
    texts = [
        text
        for module, constants in _constants().items()
        if module in sys.modules and getattr(sys.modules[module], short, None) is value
        for constant, text in constants.items()
        if constant == short
    ]
    return inspect.cleandoc(texts[0]) if texts else ""


def _is_documented_itself(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)


@cache
def _constants() -> dict[str, dict[str, str]]:
    """By module, the texts below assignments at its top level, by the name that is assigned."""
    return {
        _module_name(file): dict(_documented_constants(ast.parse(file.read_text()).body))
        for file in sorted(PACKAGE.rglob("*.py"))
    }


def _module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _documented_constants(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, text in pairwise(body):
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(text.value.value, str):
                    yield target.id, text.value.value
