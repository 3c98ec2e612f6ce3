"""Old spellings raise an error that names the new one; the remedy works."""

import inspect

import pytest
import torch
from typer.testing import CliRunner

import fperr
from fperr import measure, vocabulary
from fperr.cli import app
from fperr.measurement import estimate
from tests.exact.test_capture import normal, tiny_mlp

MODEL, X, Y = tiny_mlp(), normal(2, 6), torch.tensor([0, 1])
Z = normal(2, 4)
QUIET = {"losses": ["ce"], "formats": ["float32"], "progress": False}

CALLS = {  # old keywords, new keywords, call
    "measure target": (fperr.measure, (MODEL, X), {"target": Y}, {"targets": Y}, QUIET),
    "measure reference": (
        fperr.measure, (MODEL, X), {"reference": "ball"}, {"engine": "ball"}, QUIET
    ),
    "estimate": (estimate, (MODEL, X), {"reference": "ball"}, {"engine": "ball"}, QUIET),
    "trace_layers": (
        fperr.trace_layers, (MODEL, X), {"target": Y}, {"targets": Y}, {"progress": False}
    ),
    "attack": (
        fperr.attack, (MODEL, X, Y), {"arithmetic": "float64"}, {"format": "float64"},
        {"radius": 0.1, "steps": 1, "box": (-9.0, 9.0)},
    ),
    "gradient": (fperr.exact.gradient, (MODEL, X, Z), {"bits": 40}, {"digits": 12}, {}),
    "gradient's end": (
        fperr.exact.gradient, (MODEL, X, Z), {"largest_bits": 900}, {"largest_digits": 300}, {}
    ),
    "paper": (fperr.bounds.paper, (Z,), {"label": Y}, {"labels": Y}, {}),
    "bound": (
        fperr.bounds.logit_gradient, (), {"z": Z, "label": Y}, {"logits": Z, "labels": Y}, {},
    ),
    "stable bound": (
        fperr.bounds.stable_ce_logit_gradient, (), {"z": Z, "label": Y},
        {"logits": Z, "labels": Y}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "old", "new", "rest"), CALLS.values(), ids=CALLS)
def test_the_new_spelling_is_named_and_works(call, arguments, old, new, rest):
    with pytest.raises(TypeError) as raised:
        call(*arguments, **old, **rest)
    named = next(iter(old)), next(iter(new))
    assert f"{named[0]!r}: it is {named[1]!r} now" in str(raised.value)
    call(*arguments, **new, **rest)


def test_every_renamed_argument_is_in_the_table_above():
    """And no table entry names an argument that does not exist."""
    tested = {(c[0].__name__, old) for c in CALLS.values() for old in c[2]}
    in_table = {
        (function, old)
        for function, names in vocabulary._RENAMED_ARGUMENTS.items()
        for old in names
    }
    assert in_table - tested == {("estimate", "target"), ("attack_in_batches", "arithmetic")}
    for call, _, _, new, _ in CALLS.values():
        taken = measure if call is estimate else call  # it hands its options on
        assert set(new) <= set(inspect.signature(taken).parameters)


def test_the_old_engine_is_named():
    with pytest.raises(ValueError, match="is called 'double_word' now: give engine='double_word'"):
        fperr.measure(MODEL, X, engine="multiword", **QUIET)
    fperr.measure(MODEL, X, engine="double_word", **QUIET)


def test_record_takes_x_before_y():
    with pytest.raises(TypeError, match=r"record\(model, x, y\)"), fperr.record(MODEL, Y, x=X):
        pass
    with pytest.raises(TypeError, match=r"record\(model, None, y\)"), fperr.record(MODEL, Y):
        pass


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["measure", "fashion_standard", "--reference", "ball"], "--engine"),
        (["attack", "fashion_standard", "--radius", "0.1", "--arithmetic", "exact"], "--format"),
    ],
)
def test_old_options_name_the_new_ones(arguments, new):
    result = CliRunner().invoke(app.app, arguments)
    assert f"give {new}" in str(result.exception)


def test_a_plot_is_drawn_by_a_named_function():
    layers = fperr.trace_layers(MODEL, X, Y, progress=False)
    with pytest.raises(TypeError, match=r"plot\.relative_error\(\) now"):
        layers.plot()
    assert layers.plot.relative_error().axes
