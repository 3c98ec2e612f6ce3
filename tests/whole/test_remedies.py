"""Every remedy that an error names helps: the code in its text is read, applied, and run.

The errors are collected from the table of bad calls and from models that return something else
than logits; what is read are changes of an option (`logits='scores'`, `batch_size=1`) and
expressions of the bad argument (`x[None]`, `x.to_dense()`, `model.eval()`).
"""

import copy
import inspect
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import fperr
from tests.whole.test_api_bad_calls import CALLS, DOORS, Broken, X, Y, fault_of, net

OPTION = re.compile(
    r"\b(\w+)=('[^']*'|lambda \w+: [^;]*?(?=, or |; |, if |$)|\([-\d., ]+\)|True|False|-?\d[\w.]*)"
)
# what was got is no remedy
_GOT = re.compile(r"got [^:;]*[:;]")


@dataclass
class Scores:
    scores: torch.Tensor


OUTPUTS = {
    "probabilities": lambda z: z.softmax(1),
    "tuple": lambda z: (z, z[:, :1]),
    "tuple with something before": lambda z: ("features", z),
    "dictionary": lambda z: {"features": z[:, :1], "logits": z},
    "dataclass": Scores,
    "one logit": lambda z: z[:, :1],
    "one flat logit": lambda z: z[:, 0],
    "one probability": lambda z: z[:, :1].sigmoid(),
    "image": lambda z: z[:, :, None, None].expand(-1, -1, 2, 2),
    "sequence": lambda z: z[:, None].expand(-1, 5, -1),
    "one sample's shape": lambda z: z.reshape(-1, 2, 2, 1, 1),
}


def options_in(text, door):
    """The changes of options that a text names, by name: one call for each."""
    known = inspect.signature(DOORS[door][0]).parameters
    advice = _GOT.sub("", text)
    return [
        {name: eval(value, {"torch": torch})}
        for name, value in OPTION.findall(advice)
        if name in known and not (value == "'cuda'" and not torch.cuda.is_available())
    ]


def expressions_in(text, argument, bad):
    """What the expressions of the argument in a text make of it; `model.eval()` among them."""
    pattern = rf"\b{argument}((?:\[None\]|\.\w+(?:\([^()]*\))?|\s/\s255)+)"
    return [
        eval(f"{argument}{change}", {argument: bad, "torch": torch})
        for change in re.findall(pattern, _GOT.sub("", text))
    ]


def accepted(door, changed, folder):
    fault = fault_of(door, changed, folder)
    return fault is None, fault


def applied(text, door, argument, bad, folder):
    """How many remedies of a text were applied; each must be accepted."""
    binary = (
        {} if "K = 1" not in text or door == "exact.gradient" else {"y": torch.tensor([0, 1, 1])}
    )
    advised = [each for each in options_in(text, door) if each != {argument: bad}]
    changes = [{argument: bad, **binary, **change} for change in advised]
    changes += [{argument: value} for value in expressions_in(text, argument, bad)]
    for number, changed in enumerate(changes):
        is_accepted, fault = accepted(door, changed, folder / f"{number}")
        assert is_accepted, f"{text}\n  applied {changed}\n  ended in {fault!r}"
    return len(changes)


@pytest.mark.slow
def test_every_remedy_in_the_table_of_bad_calls_helps(tmp_path):
    seen: dict[tuple[str, str], int] = {}
    for number, call in enumerate(CALLS):
        door, argument, bad = call.values
        bad = copy.deepcopy(bad) if isinstance(bad, nn.Module) else bad  # .eval() changes it
        fault = fault_of(door, {argument: bad}, tmp_path / f"bad{number}")
        key = (door, re.sub(r"\d+", "0", str(fault)))
        if key not in seen:
            seen[key] = applied(str(fault), door, argument, bad, tmp_path / f"good{number}")
    assert sum(seen.values()) >= 40, seen


@pytest.mark.parametrize("door", ["measure", "attack", "trace_layers"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_remedy_for_an_odd_output_helps(door, kind, tmp_path):
    model = Broken(OUTPUTS[kind]).eval()
    y = torch.tensor([0, 1, 1])
    bad = {"model": model, "y": y}
    fault = fault_of(door, bad, tmp_path)
    assert fault is not None
    changes = options_in(str(fault), door)
    assert changes, f"no remedy can be read in: {fault}"
    for change in changes:
        is_accepted, after = accepted(door, {**bad, **change}, tmp_path)
        assert is_accepted, f"{fault}\n  applied {change}\n  ended in {after!r}"


def test_a_remedy_that_does_not_help_is_noticed(tmp_path):
    """The control: a text whose code changes nothing, and one whose code breaks."""
    bad = X.to_sparse()
    for text in ("give x.coalesce()", "use batch_size=0", "give x.to_dense()[None][0, 0]"):
        with pytest.raises((AssertionError, IndexError)):
            assert applied(text, "measure", "x", bad, tmp_path)


def test_the_remedy_for_pixels_and_layouts():
    """Words with code that only a picture can show: channels that come last."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4)).eval()
    images = torch.rand(2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"give x\.permute\(0, 3, 1, 2\)"):
        fperr.attack(model, images, Y[:2], radius=0.1)
    fperr.attack(model, images.permute(0, 3, 1, 2), Y[:2], radius=0.1, steps=1)
    with pytest.raises(ValueError, match=r"x\.float\(\) / 255"):
        fperr.measure(net(), (X * 255).to(torch.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fperr.measure(
            net(), (X * 255).to(torch.uint8).float() / 255, losses=["ce"], formats=["float32"]
        )
    with pytest.raises(ValueError, match=r"x\.astype\('float32'\)"):
        fperr.measure(net(), np.ones((3, 6), dtype=">f4"))
