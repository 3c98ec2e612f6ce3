"""The examples in docstrings run and print what they show; every public name has one."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pytest

import fperr
from docs.public_names import docstring, public_names
from fperr import measurement, shares

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTED = {  # name -> docstring
    name: docstring(name, value) for name, value in public_names().items()
} | {
    f"{function.__module__}.{function.__qualname__}": inspect.getdoc(function) or ""
    for function in (fperr.Report.summary, measurement.estimate, shares.wilson_interval)
}
HIDDEN = "_"  # first letter of names that are nobody's door


def examples_of(name: str, text: str) -> doctest.DocTest:
    """The example in a docstring, whose names are only those that it imports itself."""
    return doctest.DocTestParser().get_doctest(text, {}, name, None, None)


def failures(test: doctest.DocTest) -> tuple[int, str]:
    """How many lines of the example print something else than they show, and what."""
    printed: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=printed.append)
    return result.failed, "".join(printed)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_name_runs(name):
    test = examples_of(name, DOCUMENTED[name])
    count, printed = failures(test)
    assert not count, printed


def without_example(docstrings: dict[str, str]) -> list[str]:
    """The names whose docstring has no example that shows a result."""
    return [
        name
        for name, text in docstrings.items()
        if not any(example.want or example.exc_msg for example in examples_of(name, text).examples)
    ]


def test_every_public_name_has_an_example():
    assert len(without_example(DOCUMENTED)) == 0, without_example(DOCUMENTED)


def test_names_without_an_example_are_found():
    """Negative control of the test above."""
    planted = {f"planted.{f.__name__}": inspect.getdoc(f) for f in (silent, mute, right)}
    assert without_example(DOCUMENTED | planted) == ["planted.silent", "planted.mute"]


def test_the_doors_are_among_them():
    """Without this, a `__all__` of another spelling would leave nothing to test."""
    assert {
        "fperr.measure", "fperr.trace_layers", "fperr.attack", "fperr.record", "fperr.repaired",
        "fperr.exact.gradient", "fperr.exact.ENGINES", "fperr.bounds.check", "fperr.bounds.paper",
        "fperr.losses.mifpe", "fperr.losses.LossFunction", "fperr.zoo.load", "fperr.__version__",
        "fperr.errors.ModelError", "fperr.formats.FLOAT16", "fperr.data.fashion_mnist_1000",
    } <= set(DOCUMENTED)  # fmt: skip


def members(cls: type) -> Iterator[tuple[str, object]]:
    """The methods and properties that a class of fperr offers, inherited ones of fperr too."""
    for owner in cls.__mro__:
        if owner.__module__.split(".")[0] in ("fperr", __name__.split(".")[0]):
            for name, value in vars(owner).items():
                kinds = (property, classmethod, staticmethod, cached_property)
                if name[0] != HIDDEN and (inspect.isfunction(value) or isinstance(value, kinds)):
                    yield name, getattr(cls, name)


def undocumented_members(classes: Iterable[type]) -> list[str]:
    return [
        f"{cls.__qualname__}.{name}"
        for cls in classes
        for name, value in members(cls)
        if not inspect.getdoc(value)
    ]


def test_methods_and_properties_of_public_classes_have_docstrings():
    classes = [value for value in public_names().values() if inspect.isclass(value)]
    assert len(classes) > 40
    assert undocumented_members(classes) == []


def test_members_without_a_docstring_are_found():
    """Negative control of the test above."""
    assert undocumented_members([Undocumented]) == ["Undocumented.size", "Undocumented.grow"]


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
    run_above = set(DOCUMENTED.values())
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


def mute(count: int) -> int:
    """A function whose example shows nothing.

    >>> from math import pi
    """
    return count


def right(count: int) -> int:
    """A function with an example.

    >>> 1 + 1
    2
    """
    return count


class Undocumented:
    """A class whose members have no docstrings, but for one."""

    @property
    def size(self):
        return 1

    def grow(self):
        """"""

    def shrink(self):
        """Do nothing."""


def test_wrong_examples_are_noticed():
    found, printed = failures(examples_of("wrong", wrong.__doc__))
    assert found == 1
    assert "Expected:" in printed
    assert failures(examples_of("failing", failing.__doc__))[0] == 1
    assert not failures(examples_of("right", right.__doc__))[0]
    names = {test.name.split(".")[-1] for test in examples_in(sys.modules[__name__])}
    assert names == {"wrong", "failing", "mute", "right"}
