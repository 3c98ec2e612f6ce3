"""Branches: which side each ReLU took and which entry each pooling, and how two runs differ.

The gradient jumps where a branch flips. Flips at an exact tie are counted separately: there the
exact network has two equal candidates, and PyTorch's rule (the first one, or 0 at a kink) is a
convention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, T
from fperr.exact.graph import Capture, Node
from fperr.exact.index_arrays import IndexNDArray
from fperr.exact.interpreter import ForwardRun, SavedValues
from fperr.exact.node_kinds import TorchValue
from fperr.exact.operations.table import Argument, number
from fperr.exact.replays import without_autocast
from fperr.exact.saved_values import saved_for_backward

_ALONG = {"aten.max.dim", "aten.min.dim"}
_POOLINGS = {
    "aten.max_pool2d_with_indices.default",
    "aten.adaptive_max_pool2d.default",
    "aten.max_pool3d_with_indices.default",
    *_ALONG,
}


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches that one layer takes at one sample in the exact network.

    Attributes:
        key: Key of the saved value that holds them.
        layer: Name of the module or node that takes them.
        kind: `"activation"` (which side of a kink) or `"pooling"` (which entry is the largest).
        shape: Shape of the saved value in the graph.
        outcome: Mask of an activation's positive side, or positions (planes, windows) in a pooling.
        values: Integers (planes, candidates) of a pooling, equal for equal numbers; of an
            activation, a mask that is true where the number lies exactly on a kink.
    """

    key: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    outcome: IndexNDArray
    values: IndexNDArray


@dataclass(frozen=True, slots=True)
class Flips:
    """The number of branches of one layer that differ between two runs.

    Attributes:
        layer, kind: The same as in `Branches`.
        decisions: Number of branches that the layer takes.
        flips: Number of branches that differ where the exact network has no tie.
        tie_flips: Number of branches that differ where the exact network has a tie.
    """

    layer: str
    kind: str
    decisions: int
    flips: int
    tie_flips: int


def branches_of(capture: Capture, run: ForwardRun[T], A: Arithmetic[T]) -> tuple[Branches, ...]:
    """Collect the branches that the backward half of the graph uses.

    Args:
        capture: Network, captured for one sample.
        run: Exact run at that sample.
        A: Arithmetic of the run.
    """
    branches = []
    for key, source, decide, arguments in saved_for_backward(capture):
        # only used where it is a mask or the positions of maxima, in NumPy as for every one sample
        outcome = cast(IndexNDArray, run.saved_values.values[key])
        if decide is not None:
            producer = source.args[0] if str(source.target) == "aten.relu.default" else source
            preactivation = run.values.get(str(producer))
            is_tied = np.zeros(outcome.shape, dtype=bool)
            for kink in _kinks(arguments) if preactivation is not None else ():
                is_tied = is_tied | (
                    index_arrays.of_one(A.sign(A.sub(cast(T, preactivation), kink))) == 0
                )
            branches.append(
                Branches(key, capture.layer(source), "activation", outcome.shape, outcome, is_tied)
            )
        elif (pooling := _pooling_of(source)) is not None:
            value_numbers = A.values(cast(T, run.values[str(pooling.args[0])]))  # it was pooled
            candidates = _windows(pooling, value_numbers)
            positions = np.asarray(outcome).reshape(len(candidates), -1)
            branches.append(
                Branches(
                    key, capture.layer(pooling), "pooling", outcome.shape, positions, candidates
                )
            )
    return tuple(branches)


def flips(exact: Sequence[Branches], other: SavedValues[T], keys: Mapping[str, str]) -> list[Flips]:
    """Count the branches that another run takes differently, by layer.

    Args:
        exact: Branches of the exact network.
        other: Saved values of the other run.
        keys: Keys of `other` by the key of `Branches`.
    """
    flips_by_layer = []
    for branch in exact:
        outcome = np.asarray(other.values[keys[branch.key]]).reshape(branch.outcome.shape)
        differs = outcome != branch.outcome
        if branch.kind == "pooling":
            pick = np.take_along_axis
            positions, exact_positions = cast(Indices, outcome), cast(Indices, branch.outcome)
            is_tied = pick(branch.values, positions, -1) == pick(branch.values, exact_positions, -1)
        else:
            is_tied = np.asarray(branch.values, dtype=bool)
        ties = int((differs & is_tied).sum())
        flips_by_layer.append(
            Flips(branch.layer, branch.kind, differs.size, int(differs.sum()) - ties, ties)
        )
    return flips_by_layer


def corresponding(exact: Sequence[Branches], capture: Capture) -> dict[str, str] | None:
    """Map keys of branches to those in another capture of the network; None if they differ."""
    keys = [
        key
        for key, source, decide, _ in saved_for_backward(capture)
        if decide is not None or _pooling_of(source) is not None
    ]
    if len(keys) != len(exact):
        return None
    return {branch.key: key for branch, key in zip(exact, keys, strict=True)}


@torch.no_grad()
def frozen_gradient(
    capture: Capture, x: Tensor, v: Tensor, samples: Sequence[Sequence[Branches]]
) -> Tensor | None:
    """Compute J^T v of a batch in floating point along prescribed branches.

    Args:
        capture: Network, captured at the batch's shape in the format.
        x: Input (batch, *shape), in the format.
        v: Cotangents of the logits (batch, K), in the format.
        samples: Branches of each sample.

    Returns:
        The products (batch, *shape), in the format; None if the graph has branches elsewhere.
    """
    keys = corresponding(samples[0], capture)
    if keys is None:
        return None
    outcomes = {
        keys[branches[0].key]: [
            torch.from_numpy(branch.outcome.reshape(branch.shape)) for branch in branches
        ]
        for branches in zip(*samples, strict=True)
    }
    outcome_by_node: dict[str, Tensor] = {}
    for key, source, decide, arguments in saved_for_backward(capture):
        if key in outcomes:
            outcome = _joined(outcomes[key], capture.shapes[source.name]).to(v.device)
            outcome_by_node[key] = outcome if decide is None else _stand_in(outcome, arguments)
    with without_autocast():
        gradient: Tensor = _Frozen(capture.module, outcome_by_node).run(x, v)[1]
    return gradient


class _Frozen(fx.Interpreter):
    """Runs a graph along prescribed branches."""

    def __init__(self, module: fx.GraphModule, outcome_by_node: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._outcome_by_node = outcome_by_node

    def run_node(self, n: Node) -> TorchValue:
        """Run one node, or return the prescribed outcome instead."""
        if n.name in self._outcome_by_node:
            return self._outcome_by_node[n.name]
        keys = [f"{n.name}.{position}" for position in range(len(n.args))]
        if not any(key in self._outcome_by_node for key in keys):
            return cast(TorchValue, super().run_node(n))
        arguments, options = self.fetch_args_kwargs_from_env(n)
        pairs = zip(keys, arguments, strict=True)
        assert callable(n.target)
        value = n.target(*(self._prescribed(k, a) for k, a in pairs), **options)
        return cast(TorchValue, value)

    def _prescribed(self, key: str, argument: object) -> object:
        """The argument, or in its place what is prescribed, in its dtype: autocast mixes them."""
        if key not in self._outcome_by_node:
            return argument
        assert isinstance(argument, Tensor)
        return self._outcome_by_node[key].to(argument.dtype)


def _joined(outcomes: list[Tensor], batch_shape: tuple[int, ...]) -> Tensor:
    """Join the outcomes of single samples along the dimension in which a batch is longer."""
    shape = outcomes[0].shape
    differ = [d for d, (n, m) in enumerate(zip(batch_shape, shape, strict=True)) if n != m]
    return torch.cat(outcomes, differ[0]) if differ else outcomes[0]


def _stand_in(mask: Tensor, arguments: Sequence[Argument]) -> Tensor:
    """Numbers for which an activation's backward operation takes the branches of the mask."""
    low, *high = _kinks(arguments)
    inside = (low + high[0]) / 2 if high else low + 1.0
    return torch.where(mask, inside, low - 1.0)


def _kinks(arguments: Sequence[Argument]) -> tuple[float, ...]:
    """The kinks of an activation, from the arguments of its backward operation.

    ReLU's has (gradient, result, threshold), leaky ReLU's (gradient, a, slope, is_result) and
    hardtanh's (gradient, a, low, high).
    """
    if len(arguments) == 3:
        return (number(arguments, 2),)
    is_leaky = isinstance(arguments[3], bool)
    return (0.0,) if is_leaky else (number(arguments, 2), number(arguments, 3))


def _pooling_of(source: Node) -> Node | None:
    """The pooling whose second output, the positions of the maxima, is the node `source`."""
    if source.target is not getitem or source.args[1] != 1:
        return None
    producer = source.args[0]
    assert isinstance(producer, Node)
    return producer if str(producer.target) in _POOLINGS else None


def _windows(pooling: Node, values: Indices) -> Indices:
    """The candidates (planes, candidates) among which the positions of a pooling count."""
    if str(pooling.target) in _ALONG:
        along = np.moveaxis(values, int(str(pooling.args[1])), -1)
        return along.reshape(-1, along.shape[-1])
    rank = 3 if "3d" in str(pooling.target) else 2
    return values.reshape(int(np.prod(values.shape[:-rank])), -1)
