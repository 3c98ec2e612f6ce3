"""Single samples of the run of a batch, and saved values of samples as a batch."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.arithmetic import T
from fperr.exact.double_word import DoubleWords
from fperr.exact.interpreter import ForwardRun, SavedValues
from fperr.exact.monitored import array
from fperr.exact.monitored.array import MonitoredArray

B = TypeVar("B", DoubleWords, MonitoredArray)  # an array of a batched arithmetic


def sample_of_run(run: ForwardRun[B], sample: int) -> ForwardRun[B]:
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
    if isinstance(value, DoubleWords | MonitoredArray):
        return value.of(sample)
    if isinstance(value, Tensor):
        # a single entry stands for all samples
        return value[sample if len(value) > 1 else 0].cpu().numpy()
    if isinstance(value, tuple | list):
        return [sample_of(element, sample) for element in value]
    return value


def stacked(saved_values: Sequence[SavedValues[B]]) -> SavedValues[B]:
    """The saved values of single samples as those of a batch."""
    keys = saved_values[0].values
    return SavedValues(
        {key: _joined([saved.values[key] for saved in saved_values]) for key in keys}
    )


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
    if isinstance(first, MonitoredArray):
        return array.stacked(values)
    if index_arrays.is_index_array(first):
        return torch.from_numpy(np.stack([np.asarray(value) for value in values]))
    return [_joined(list(elements)) for elements in zip(*values, strict=True)]
