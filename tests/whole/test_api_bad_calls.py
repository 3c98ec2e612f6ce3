"""Bad calls of the API, made from one table: argument x kind of badness.

Each must end in an error of fperr's own that names the argument (or the model), and says what was
got and what to do; none may end in another library's traceback, and none may be accepted.
"""

import itertools
import re
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fperr
from fperr import bounds, exact
from fperr.attacks import attack_in_batches
from fperr.measurement.estimate import estimate

PACKAGE = Path(fperr.__file__).parent
X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2])
Z = torch.tensor([[3.0, 1.0, 0.0, -1.0]] * 3)
V = torch.ones(3, 4)
REMEDY = re.compile(
    r"\b(give|use|leave|call|convert|move|load|name|choose|scale|add|write|say|make|run|stack|"
    r"expected|wrap|check|round|take|save|torch\.tensor|get|undo|mask|see|set|put|or)\b|\.\w+\(",
    re.IGNORECASE,
)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


class Broken(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = net(), function

    def forward(self, x):
        return self.function(self.inner(x))


def raising(_):
    raise KeyError("inside the model")


def with_weights(change):
    model = net()
    with torch.no_grad():
        change(model)
    return model


OTHER_NAMES = {
    "logits": ("logits", "labels"),
    "model": ("model", "network", "logits"),
    "losses": ("losses", "loss "),
    "formats": ("formats", "format "),
    "alternatives": ("alternatives", "loss "),
}
MODELS = {
    "None": None,
    "a name": "fashion_standard",
    "a class": nn.Linear,
    "a function": lambda x: x,
    "training": net().train(),
    "NaN weights": with_weights(lambda m: m[0].weight.fill_(torch.nan)),
    "infinite bias": with_weights(lambda m: m[2].bias.fill_(torch.inf)),
    "meta": net().to("meta"),
    "two dtypes": nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4).double()).eval(),
    "raises": Broken(raising).eval(),
    "a tuple": Broken(lambda z: (z, z)).eval(),
    "a number": Broken(torch.sum).eval(),
    "None inside": Broken(lambda _: None).eval(),
    "classes": Broken(lambda z: z.argmax(1)).eval(),
    "one logit": Broken(lambda z: z[:, :1]).eval(),
    "an image": Broken(lambda z: z[:, :, None, None].expand(-1, -1, 2, 2)).eval(),
    "fewer rows": Broken(lambda z: z[:-1]).eval(),
    "random": Broken(lambda z: z + torch.rand_like(z)).eval(),
    "of the batch": Broken(lambda z: z - z.mean(0)).eval(),
}


def tensors(width):
    """What is no batch of three samples with that many numbers."""
    return {
        "None": None,
        "text": "x.pt",
        "a number": 3,
        "a list": [[0.0] * width] * 3,
        "integers": torch.ones(3, width, dtype=torch.int64),
        "booleans": torch.ones(3, width, dtype=torch.bool),
        "complex": torch.ones(3, width, dtype=torch.complex64),
        "float8": torch.ones(3, width).to(torch.float8_e4m3fn),
        "sparse": torch.ones(3, width).to_sparse(),
        "meta": torch.ones(3, width, device="meta"),
        "0-d": torch.tensor(1.0),
        "no samples": torch.ones(0, width),
        "objects": np.array([[None] * width] * 3),
        "long double": np.ones((3, width), dtype=np.longdouble),
        "other byte order": np.ones((3, width), dtype=">f4"),
        "wrong width": torch.rand(3, width - 1),
    }


TENSORS = tensors(6)
LABELS = {
    "a number": 1,
    "text": "cat",
    "texts": ["cat", "dog", "cat"],
    "Nones": [None, None, None],
    "ragged": [[0], [1, 2], [3]],
    "floats": torch.tensor([0.0, 1.0, 2.0]),
    "booleans": torch.tensor([True, False, True]),
    "too few": torch.tensor([0, 1]),
    "2-d": torch.tensor([[0], [1], [2]]),
    "too large": torch.tensor([0, 1, 4]),
    "negative": torch.tensor([0, 1, -1]),
    "huge": [0, 1, 2**70],
    "meta": torch.zeros(3, dtype=torch.int64, device="meta"),
}
WHOLE = {
    "text": "2",
    "True": True,
    "a fraction": 1.5,
    "a float": 2.0,
    "NaN": float("nan"),
    "negative": -1,
    "a list": [2],
}
REAL = {
    "text": "0.1",
    "True": True,
    "None": None,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "negative": -0.5,
    "complex": 1j,
    "a list": [0.1],
    "a batch": torch.tensor([0.1, 0.2]),
}
CHOICE = {"unknown": "nope", "None": None, "a number": 3, "bytes": b"ce", "a list": ["ce"]}
OPTIONAL_CHOICE = {kind: bad for kind, bad in CHOICE.items() if bad is not None}
NAMES = {
    "a string": "ce",
    "empty": [],
    "None": None,
    "numbers": [1],
    "unknown": ["nope"],
    "twice": ["ce", "ce"],
    "a number": 5,
}
FORMATS = {**NAMES, "a string": "float16", "twice": ["float16", "float16"], "tf32": ["tf32"]}
FLAG = {"None": None, "text": "yes", "a number": 2}
ACCESSOR = {
    "True": True,
    "a list": [0],
    "no such name": "scores",
    "no such index": 3,
    "a float": 0.5,
}
PLACE = {"a number": 3, "True": True}

MEASURE = {
    "model": MODELS,
    "x": TENSORS,
    "y": LABELS,
    "targets": {**LABELS, "the true class": Y},
    "losses": NAMES,
    "formats": FORMATS,
    "scenarios": {"unknown": "nope", "a number": 3, "empty": [], "numbers": [1]},
    "engine": CHOICE,
    "digits": {**WHOLE, "too few": 5},
    "certify": FLAG,
    "jacobian": CHOICE,
    "reduction": CHOICE,
    "loss_scale": {**REAL, "zero": 0.0},
    "autocast": FLAG,
    "device": {"unknown": "nope", "a number": 5.5, "absent": "cuda", "meta": "meta"},
    "batch_size": {**WHOLE, "zero": 0},
    "progress": {"text": "yes", "a number": 2},
    "logits": ACCESSOR,
    "accept_probabilities": FLAG,
    "name": {"a number": 5, "bytes": b"", "empty": ""},
    "out": {"a number": 3, "bytes": b"out"},
}
ATTACK = {
    "model": MODELS,
    "x": {**TENSORS, "NaN": X * torch.nan, "outside the box": 2 + X},
    "y": {**LABELS, "None": None},
    "radius": {**REAL, "zero": 0.0, "beyond the box": 8.0},
    "method": CHOICE,
    "loss": CHOICE,
    "norm": CHOICE,
    "steps": {**WHOLE, "zero": 0, "None": None},
    "targets": {**LABELS, "the true class": Y},
    "format": {**CHOICE, "tf32": "tf32"},
    "scenario": OPTIONAL_CHOICE,
    "seed": {**WHOLE, "None": None},
    "restarts": {**WHOLE, "zero": 0, "None": None},
    "schedule": CHOICE,
    "step_size": {kind: bad for kind, bad in REAL.items() if bad is not None},
    "momentum": {**REAL, "one": 1.0},
    "random_start": FLAG,
    "freeze": FLAG,
    "reduction": CHOICE,
    "projection": CHOICE,
    "box": {
        "None": None,
        "a number": 1.0,
        "one end": (0.0,),
        "upside down": (1.0, 0.0),
        "text": "01",
        "NaN": (0.0, float("nan")),
        "texts": ("0", "1"),
    },
    "logits": ACCESSOR,
    "accept_probabilities": FLAG,
    "on_step": {"a number": 3, "text": "print"},
}
LAYERS = {
    "model": MODELS,
    "x": {**TENSORS, "NaN": X * torch.nan},
    "y": LABELS,
    "targets": LABELS,
    "loss": CHOICE,
    "format": {**CHOICE, "tf32": "tf32"},
    "progress": {"text": "yes", "a number": 2},
}
EXACT = {
    "model": {k: m for k, m in MODELS.items() if k != "one logit"},
    "x": {**TENSORS, "NaN": X * torch.nan, "an infinity": X / 0},
    "v": {**tensors(4), "NaN": V * torch.nan, "fewer": V[:2]},
    "engine": CHOICE,
    "bits": {**WHOLE, "too few": 5},
    "largest_bits": {**WHOLE, "too few": 5, "None": None},
}
LOGITS = {k: t for k, t in tensors(4).items() if k != "wrong width"} | {"one class": Z[:, :1]}
CHECK = {
    "logits": {**LOGITS, "NaN": Z * torch.nan, "1-d": Z[0], "infinite": Z / 0},
    "labels": {**LABELS, "None": None},
    "format": CHOICE,
    "targeted": FLAG,
    "kernel": CHOICE,
    "largest_error": {**REAL, "zero": 0.0},
    "alternatives": {k: v for k, v in NAMES.items() if k not in ("empty", "twice")},
}
ATTRIBUTE = {
    **{k: ATTACK[k] for k in ("model", "x", "y", "targets", "radius", "norm", "steps", "seed")},
    **{k: ATTACK[k] for k in ("box", "logits", "accept_probabilities")},
    "format": {**CHOICE, "exact": "exact"},
    "exact": CHOICE,
    "search": {k: choice for k, choice in CHOICE.items() if k != "None"},
    "starts": {**WHOLE, "zero": 0},
    "why": FLAG,
    "confidence": {**REAL, "zero": 0.0, "one": 1.0},
    "batch_size": {**WHOLE, "zero": 0, "None": None},
    "progress": {"text": "yes", "a number": 2},
    "out": {k: place for k, place in PLACE.items() if k != "None"},
}
BATCHES = {
    "batch_size": {**WHOLE, "zero": 0, "None": None},
    "folder": {"None": None, "a number": 3},
    "y": {**LABELS, "None": None},
    "x": TENSORS,
    "advance": {"a number": 3},
    "stepsize": {"an option that is none": 0.1},
}
RECORD = {
    "model": {
        k: m
        for k, m in MODELS.items()
        if k in ("None", "a name", "a class", "a function", "training", "NaN weights", "meta")
    },
    "y": {**LABELS, "None": None},
    "x": {k: t for k, t in TENSORS.items() if k not in ("None", "wrong width")},
    "targets": {**LABELS, "the true class": Y},
    "loss": {"unknown": "nope", "a number": 3, "bytes": b"ce"},
    # none at all is allowed: the attack's own gradients are compared alone
    "losses": {k: names for k, names in NAMES.items() if k != "empty"},
    "formats": {k: names for k, names in FORMATS.items() if k != "empty"},
    "every": {**WHOLE, "zero": 0},
    "samples": {"text": "2", "negative": -1, "beyond": [5], "a fraction": 1.5, "True": True},
    "digits": {**WHOLE, "too many": 30},
    "out": PLACE,
    "logits": ACCESSOR,
    "accept_probabilities": FLAG,
}


def record(**arguments):
    with fperr.record(**arguments):
        fperr.attack(arguments["model"], X, Y, radius=0.1, steps=1, loss="ce")


GOOD = {"model": net(), "x": X, "y": Y}
QUICK = {**GOOD, "losses": ["ce"], "formats": ["float16"], "engine": "mpmath", "progress": False}
DOORS = {
    "measure": (fperr.measure, QUICK, MEASURE),
    "estimate": (estimate, QUICK, {k: MEASURE[k] for k in ("x", "y", "losses")}),
    "attack": (fperr.attack, {**GOOD, "radius": 0.1, "steps": 2, "loss": "mifpe"}, ATTACK),
    "attribute": (
        fperr.attribute,
        {**GOOD, "radius": 0.1, "steps": 2, "starts": 1, "exact": "none", "progress": False},
        ATTRIBUTE,
    ),
    "attack_in_batches": (attack_in_batches, {**GOOD, "radius": 0.1, "steps": 2}, BATCHES),
    "trace_layers": (fperr.trace_layers, {**GOOD, "progress": False}, LAYERS),
    "exact.gradient": (
        exact.gradient,
        {"model": net(), "x": X, "v": V, "engine": "double_word"},
        EXACT,
    ),
    "bounds.check": (bounds.check, {"logits": Z, "labels": Y}, CHECK),
    "record": (record, {**GOOD, "losses": ["ce"], "formats": ["float16"], "samples": 1}, RECORD),
}
CALLS = [
    pytest.param(door, argument, bad, id=f"{door}({argument}: {kind})")
    for door, (_, _, table) in DOORS.items()
    for argument, kinds in table.items()
    for kind, bad in kinds.items()
]


def fault_of(door, changed, folder):
    """The exception that the call ends in; None where it is accepted."""
    function, good, _ = DOORS[door]
    arguments = {**good, **changed}
    if door == "attack_in_batches":
        arguments.setdefault("folder", folder / "attack")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except Exception as fault:
        return fault
    return None


def shortcomings(fault, argument):
    """What an error lacks, in words; nothing where it helps."""
    if fault is None:
        return ["the call is accepted"]
    where = Path(traceback.extract_tb(fault.__traceback__)[-1].filename)
    text = str(fault)
    named = OTHER_NAMES.get(argument, (argument,))
    lacks = {
        f"{type(fault).__name__} is raised in {where}": not where.is_relative_to(PACKAGE)
        and "unexpected keyword" not in text,
        "it is no error of arguments, models or numerics": not isinstance(
            fault, ValueError | TypeError | fperr.FperrError
        ),
        "it does not name the argument": not any(name in text for name in named),
        "it names no remedy": not REMEDY.search(text) and "unexpected" not in text,
        "it has several lines": "\n" in text,
    }
    return [what for what, is_lacking in lacks.items() if is_lacking]


@pytest.mark.parametrize(("door", "argument", "bad"), CALLS)
def test_a_bad_call_ends_in_an_error_that_helps(door, argument, bad, tmp_path):
    fault = fault_of(door, {argument: bad}, tmp_path)
    assert not shortcomings(fault, argument), f"{type(fault).__name__}: {fault}"


def test_there_are_three_hundred_calls():
    assert len(CALLS) >= 300


@pytest.mark.parametrize("door", DOORS)
def test_a_good_call_is_accepted_and_seen_to_be(door, tmp_path):
    """The control of the table: what is accepted is noticed."""
    fault = fault_of(door, {}, tmp_path)
    assert fault is None, repr(fault)
    assert shortcomings(fault, "x") == ["the call is accepted"]


def test_errors_of_other_libraries_are_noticed():
    """The control of what is asked of an error."""
    cases = itertools.chain(
        [(lambda: torch.ones(2) @ torch.ones(3), "raised in"), (lambda: int("a"), "argument")],
    )
    for call, lack in cases:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            call()
        assert any(lack in text for text in shortcomings(raised.value, "x"))
