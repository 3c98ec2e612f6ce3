"""The data dictionary: every column of every table is in it, in order, with dtype and meaning."""

import pytest
import torch

import fperr
from fperr.attribution.columns import ATTRIBUTION
from fperr.report.columns import LAYERS, MEASUREMENT
from tests.conftest import tiny_mlp


@pytest.mark.parametrize("columns", [MEASUREMENT, LAYERS, ATTRIBUTION])
def test_every_column_has_a_meaning_of_its_own(columns):
    meanings = [column.meaning for column in columns]
    assert all(len(meaning.split()) >= 3 for meaning in meanings)
    assert len(set(meanings)) == len(meanings)


def test_a_measured_column_that_is_not_in_the_dictionary_is_refused():
    report = fperr.measure(tiny_mlp(), torch.rand(2, 6), losses=["ce"], formats=["float32"])
    assert list(report.frame.columns) == [column.name for column in MEASUREMENT]
    with pytest.raises(ValueError, match=r"unknown columns \['delta_new'\]"):
        fperr.Report.from_rows([{"delta_new": 1.0}], {})
    with pytest.raises(ValueError, match="every row must name 'sample'"):
        fperr.Report.from_rows([{"label": 1}], {})


def test_the_columns_of_an_attribution_are_those_of_the_dictionary():
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    options = {"radius": 0.1, "steps": 2, "starts": 1, "search": "restarts", "why": True}
    frame = fperr.attribute(tiny_mlp(), x, y, exact="all", progress=False, **options).frame
    known = {column.name: column.dtype for column in ATTRIBUTION}
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: known[name] for name in frame.columns
    }
    assert set(known) - set(frame.columns) == {"autoattack_fooled"}
