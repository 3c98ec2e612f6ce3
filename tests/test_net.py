"""The net's comparison: what is equal to the last bit, and what is not."""

import math

import pandas as pd
import pytest
import torch

from tests.net import same

ULP = 1 + 2.0**-52


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0]).nextafter(torch.tensor(2.0))),
        (torch.tensor([1.0]), torch.tensor([1.0]).double()),
        (torch.tensor([math.nan]), torch.tensor([1.0])),
        (pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [ULP]})),
        (pd.DataFrame({"a": [1.0]}), pd.DataFrame({"b": [1.0]})),
        (pd.DataFrame({"a": ["x"]}), pd.DataFrame({"a": [None]})),
        (pd.DataFrame({"a": ["x"]}), pd.DataFrame({"a": [pd.NA]})),
        (["0.1"], ["0.10"]),
        ({"a": 1.0}, {"a": ULP}),
    ],
)
def test_a_difference_in_the_last_bit_is_seen(before, after):
    assert same(before, before)
    assert not same(before, after)


def test_not_a_number_equals_itself():
    assert same(torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]))
    assert same(pd.DataFrame({"a": [math.nan]}), pd.DataFrame({"a": [math.nan]}))
