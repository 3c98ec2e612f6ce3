"""The table of outcomes by format: what it calls N, over which images, and what it leaves out."""

import argparse
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fperr import data
from fperr.attribution.paired import paired_difference
from fperr.errors import ModelError
from tests.benchmarks import format_outcomes

GENERATOR = np.random.default_rng(0)


def outcomes_of(images: int = 60, **columns: float) -> pd.DataFrame:
    """A frame as `attribute` returns it: shares of three starts, drawn at random."""
    shares = {name: GENERATOR.binomial(3, p, images) / 3 for name, p in columns.items()}
    return pd.DataFrame({"is_judged": [True] * images, **shares})


def test_n_is_measured_from_exact_gradients_over_the_images_that_both_judged():
    first = outcomes_of(ce=0.9, mifpe=0.2, exact_ce=0.3)
    other = outcomes_of(ce=0.8, mifpe=0.2)
    other.loc[:9, "is_judged"] = False
    other.loc[:9, ["ce", "mifpe"]] = np.nan
    lines = format_outcomes.rows("network", {"float32": first, "tf32@cuda": other})
    assert [line["format"] for line in lines] == ["`float32`", "`tf32@cuda`"]
    assert [line["not judged"] for line in lines] == [0, 10]
    judged = slice(10, None)
    for line, frame, rows in zip(lines, (first, other), (slice(None), judged), strict=True):
        wanted = paired_difference(frame["ce"][rows], first["exact_ce"][rows])
        assert line["N, points"] == str(wanted)
        assert line["CE leaves, % of the judged"] == f"{100 * frame['ce'][rows].mean():.1f}"
        counts = f"{wanted.only_first} : {wanted.only_second}"
        assert line["only without : only with rounding"] == counts
    assert lines[0]["N beside `float32`"] == ""
    beside = paired_difference(other["ce"][judged], first["ce"][judged])
    assert lines[1]["N beside `float32`"] == str(beside)
    # it is the difference of the two N of the same images
    both = [paired_difference(f["ce"][judged], first["exact_ce"][judged]) for f in (first, other)]
    assert beside.estimate == pytest.approx(both[1].estimate - both[0].estimate, abs=1e-12)
    mifpe = paired_difference(other["mifpe"][judged], first["mifpe"][judged])
    assert lines[1]["MIFPE beside `float32`"] == str(mifpe)


def test_exact_gradients_are_followed_once_and_a_refused_format_is_named(
    monkeypatch, tmp_path, capsys
):
    asked = []

    def attribute(*_, format, exact, **__):
        asked.append((format, exact))
        if format == "refused":
            raise ModelError("no layer of this network is a linear one")
        return SimpleNamespace(frame=outcomes_of(ce=0.5))

    monkeypatch.setattr(format_outcomes.fperr, "attribute", attribute)
    given = argparse.Namespace(
        formats=["refused", "float32", "tf32@cuda"], steps=1, starts=1, device="cpu", out=tmp_path
    )
    images = data.fashion_mnist_1000().first(2)
    frames = format_outcomes.outcomes("name", torch.nn.Identity(), images, 0.1, given)
    assert list(frames) == ["float32", "tf32@cuda"]
    assert asked == [("refused", "all"), ("float32", "all"), ("tf32@cuda", "none")]
    assert "left out: name in refused (no layer of this network" in capsys.readouterr().out
