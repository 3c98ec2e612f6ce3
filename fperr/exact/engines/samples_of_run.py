"""Single samples of a batch's run in pairs of float64, and saved values of samples as a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.arithmetic import T
from fperr.exact.double_word import DoubleWords
from fperr.exact.interpreter import ForwardRun, SavedValues


def sample_of_run(run: ForwardRun[DoubleWords], sample: int) -> ForwardRun[DoubleWords]:
    """One sample of a batch's run: masks and index arrays become NumPy arrays."""
    values = {name: sample_of(value, sample) for name, value in run.values.items()}
    return ForwardRun(
        sample_of(run.logits, sample), sample_of_saved(run.saved_values, sample), values
    )


def sample_of_saved(saved_values: SavedValues[T], sample: int) -> SavedValues[T]:
    """The saved values of one sample of a batch."""
    return SavedValues({key: sample_of(v, sample) for key, v in saved_values.values.items()})


def sample_of(value: Any, sample: int) -> Any:
    """One sample of an array, an index array, or a list of them; other values stay as they are."""
    if isinstance(value, DoubleWords):
        return value.of(sample)
    if isinstance(value, Tensor):
        # a single entry stands for all samples
        return value[sample if len(value) > 1 else 0].cpu().numpy()
    if isinstance(value, tuple | list):
        return [sample_of(element, sample) for element in value]
    return value


def stacked(saved_values: Sequence[SavedValues[DoubleWords]]) -> SavedValues[DoubleWords]:
    """The saved values of single samples as those of a batch."""
    first, *remaining = (saved.values for saved in saved_values)
    return SavedValues({key: _joined([first[key], *(r[key] for r in remaining)]) for key in first})


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, DoubleWords):
        high, low, radius = (
            torch.cat([getattr(value, name) for value in values])
            for name in ("high", "low", "radius")
        )
        return DoubleWords(high, low, radius, None)
    if index_arrays.is_index_array(first):
        return torch.from_numpy(np.stack([np.asarray(value) for value in values]))
    return [_joined(list(elements)) for elements in zip(*values, strict=True)]
