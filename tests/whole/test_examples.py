"""The examples in docstrings run and print what they show; every public function has one."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fperr
from fperr import bounds, exact, losses, measurement, shares, zoo

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTED = {  # public name -> object, beside the functions of the three `__all__`
    "fperr.AttackResult": fperr.AttackResult,
    "fperr.Report.summary": fperr.Report.summary,
    "fperr.Thresholds": fperr.Thresholds,
    "fperr.losses.Loss": losses.Loss,
    "fperr.losses.loss_named": losses.loss_named,
    "fperr.measurement.estimate": measurement.estimate,
    "fperr.shares.wilson_interval": shares.wilson_interval,
    "fperr.zoo.load": zoo.load,
} | {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (fperr, exact, bounds)
    for name in module.__all__
    if inspect.isroutine(getattr(module, name))
}


def examples_of(name: str, documented: object) -> doctest.DocTest:
    """The example in a docstring, whose names are only those that it imports itself."""
    text = inspect.getdoc(documented) or ""
    return doctest.DocTestParser().get_doctest(text, {}, name, None, None)


def failures(test: doctest.DocTest) -> tuple[int, str]:
    """How many lines of the example print something else than they show, and what."""
    printed: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=printed.append)
    return result.failed, "".join(printed)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_name_runs(name):
    test = examples_of(name, DOCUMENTED[name])
    assert test.examples, f"{name} has no example: add one to its docstring"
    assert any(example.want for example in test.examples), f"{name}'s example shows no result"
    count, printed = failures(test)
    assert not count, printed


def test_every_public_function_is_among_them():
    """Without this, a `__all__` of another spelling would leave nothing to test."""
    assert {
        "fperr.measure", "fperr.trace_layers", "fperr.attack", "fperr.record",
        "fperr.exact.gradient", "fperr.exact.capture", "fperr.bounds.check",
        "fperr.bounds.paper", "fperr.bounds.logit_gradient", "fperr.bounds.backward_units",
    } <= set(DOCUMENTED)  # fmt: skip


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(fperr.__path__, "fperr.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def examples_in(module: ModuleType) -> list[doctest.DocTest]:
    """The examples of all functions and classes of a module, private ones too."""
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def docstrings_with_examples(module: ModuleType) -> int:
    """The number of docstrings with examples in the module's source."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
    return sum(">>> " in (ast.get_docstring(n) or "") for n in nodes if isinstance(n, kinds))


def test_all_other_examples_of_the_package_run():
    run_above = {inspect.getdoc(documented) for documented in DOCUMENTED.values()}
    for module in modules():
        tests = examples_in(module)
        assert len(tests) == docstrings_with_examples(module), module.__name__
        for test in tests:
            if inspect.cleandoc(test.docstring) not in run_above:
                count, printed = failures(test)
                assert not count, printed


def wrong(count: int) -> int:
    """A function whose example shows a wrong result.

    >>> 1 + 1
    3
    """
    return count


def failing(count: int) -> int:
    """A function whose example raises an error.

    >>> undefined_name
    """
    return count


def silent(count: int) -> int:
    """A function without an example."""
    return count


def test_wrong_examples_are_noticed():
    assert failures(examples_of("wrong", wrong))[0] == 1
    assert "Expected:" in failures(examples_of("wrong", wrong))[1]
    assert failures(examples_of("failing", failing))[0] == 1
    assert not examples_of("silent", silent).examples
    names = {test.name.split(".")[-1] for test in examples_in(sys.modules[__name__])}
    assert names == {"wrong", "failing"}
