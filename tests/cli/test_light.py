"""What is loaded for help and completion, and the names that they list."""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from typing import Annotated, get_args, get_origin

import pytest
import typer.main
from rich.text import Text

from fperr import data, figures, formats, losses, zoo
from fperr.attribution.request import EXACT_CHOICES, SEARCH_CHOICES
from fperr.bounds import kernels
from fperr.cli import app, names
from fperr.theory.scenarios import SCENARIOS
from fperr.vocabulary import RENAMED_OPTIONS

HEAVY = {"torch", "numpy", "pandas", "matplotlib", "seaborn", "pyarrow", "flint", "mpmath", "tqdm"}
HEAVY |= {"dask", "distributed", "fsspec"}
# runs a command, and prints the modules that are loaded at its end as the last line of stderr
RUN = """
import atexit, sys
atexit.register(lambda: print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr))
sys.argv = ['fperr', *sys.argv[1:]]
from fperr.cli.app import main
main()
"""
ROOT = typer.main.get_command(app.app)
GROUPS = "validate", "campaign"
COMMANDS = {
    **{name: command for name, command in ROOT.commands.items() if name not in GROUPS},
    **{
        f"{group} {name}": command
        for group in GROUPS
        for name, command in ROOT.commands[group].commands.items()
    },
}
WORK = {  # each command's options, and its work
    name: (
        inspect.unwrap(command.callback),
        getattr(
            import_module(f"fperr.cli.work.{name.split()[0]}"),
            inspect.unwrap(command.callback).__name__,
        ),
    )
    for name, command in COMMANDS.items()
}


def started(*arguments, **environment):
    """A command in a process of its own: what it prints, and the packages that it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    return done.stdout, set(done.stderr.splitlines()[-1].split()), done.returncode


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        *([group, "--help"] for group in GROUPS),
        *([*c.split(), "--help"] for c in COMMANDS),
    ],
    ids=" ".join,
)
def test_help_loads_neither_torch_nor_plots(arguments):
    out, packages, code = started(*arguments)
    assert code == 0
    assert out
    assert "typer" in packages
    assert packages.isdisjoint(HEAVY)


def test_a_wrong_option_is_told_without_torch():
    _, packages, code = started("measure", "--nothing")
    assert code == 2
    assert packages.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("fperr mea", ["measure"]),
        ("fperr attack fashion_st", ["fashion_standard"]),
        ("fperr attack x --method ", ["pgd", "fgsm", "apgd"]),
        ("fperr measure x --losses ce,mif", ["ce,mifpe", "ce,mifpe_shifted"]),
        ("fperr figures sig", ["sign-map"]),
    ],
)
def test_the_shell_completes_without_torch(typed, expected):
    words = typed.split() + [""] * typed.endswith(" ")
    out, packages, _ = started(
        _FPERR_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1)
    )
    assert out.split() == expected
    assert packages.isdisjoint(HEAVY)


def test_a_command_that_works_loads_torch():
    """Negative control of the tests above."""
    out, packages, code = started("zoo")
    assert code == 0
    assert "fashion_standard" in out
    assert {"torch", "pandas"} <= packages


REGISTRIES = {
    "LOSSES": losses.LOSSES_BY_NAME,
    "FIGURES": figures.FIGURES,
    "NETWORKS": zoo.REGISTRY,
    "DATASETS": data.DATASETS,
    "FORMATS": formats.FORMATS,
    "SCENARIOS": SCENARIOS,
    "KERNELS": [name for name in kernels.KERNELS if name != "cuda"],
    "EXACT_CHOICES": EXACT_CHOICES,
    "SEARCH_CHOICES": SEARCH_CHOICES,
}


@pytest.mark.parametrize("table", REGISTRIES)
def test_the_names_are_those_of_the_registries(table):
    assert getattr(names, table) == tuple(REGISTRIES[table])


def test_every_table_of_names_is_compared_or_is_the_only_one():
    only_ones = {"FORMATS_OF_ATTACK", "ENGINES", "METHODS", "NORMS", "PICTURES"}
    imported = {"ATTACK_FORMATS", "ENGINE_CHOICES", "FORMAT_NAMES"}
    tables = {name for name in vars(names) if name.isupper()}
    assert tables - imported == only_ones | set(REGISTRIES)


def plain(annotation):
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


@pytest.mark.parametrize(("options", "work"), WORK.values(), ids=WORK)
def test_the_work_takes_the_options_that_are_declared(options, work):
    declared = {
        name: plain(p.annotation) for name, p in inspect.signature(options).parameters.items()
    }
    declared = {name: kind for name, kind in declared.items() if f"--{name}" not in RENAMED_OPTIONS}
    taken = {name: p.annotation for name, p in inspect.signature(work).parameters.items()}
    assert taken == declared


def texts_of(command):
    return [command.help, *(p.help for p in command.params if getattr(p, "help", None))]


@pytest.mark.parametrize("command", [ROOT, *COMMANDS.values()], ids=["fperr", *COMMANDS])
def test_no_word_of_a_help_text_is_taken_for_markup(command):
    for text in [*texts_of(command), command.epilog]:
        assert Text.from_markup(text).plain == text
    assert (
        Text.from_markup("by default [a figure's own: packaged]").plain != "by default [a figure's"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_three_examples_that_it_understands(name):
    command = COMMANDS[name]
    title, *examples = [line.strip() for line in command.epilog.split("\n\n")]
    assert title == "Examples:"
    assert len(examples) == 3
    for example in examples:
        words = example.split(" | ")[0].split()
        assert words[: 1 + len(name.split())] == ["fperr", *name.split()]
        assert len(example) <= 78  # a line of a terminal, with the help's margins
        with command.make_context(name, words[1 + len(name.split()) :]) as context:
            assert set(context.params) == {p.name for p in command.params}


def test_an_example_with_a_wrong_option_is_noticed():
    """Negative control of the test above."""
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["measure"].make_context("measure", ["net", "--nothing"])


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_flag_is_shown_without_a_value(command):
    with command.make_context("x", [], resilient_parsing=True) as context:
        flags = [p for p in command.get_params(context) if getattr(p, "is_flag", False)]
    assert "--help" in {option for flag in flags for option in flag.opts}
    assert {flag.metavar for flag in flags} == {""}


def test_the_page_of_measure_names_losses_and_formats_and_no_bool():
    out, _, _ = started("measure", "--help", COLUMNS="100")
    shown = " ".join(out.replace("│", " ").split())
    assert "<bool>" not in shown
    assert "<int>" in shown  # control: types of values are shown
    for name in (*names.LOSSES, *names.FORMATS, *names.SCENARIOS):
        assert name in shown


def test_no_arguments_show_what_people_do_first():
    out, _, _ = started()
    for text in ("bounds.check", "fperr measure ", "fperr attack ", "fperr attribute ", "docs/"):
        assert text in out
