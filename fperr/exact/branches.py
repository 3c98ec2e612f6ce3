"""Routing: which way ReLUs and poolings decided, and where two runs decided differently.

The gradient jumps where a decision flips. A flip at an exact tie is told apart: there the exact
network has two equal candidates, and PyTorch's rule (the first one, or 0 at a kink) is a choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Indices, Mask
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import ForwardRun, SavedValues
from fperr.exact.saved_values import saved_for_backward

_POOLINGS = {
    "aten.max_pool2d_with_indices.default",
    "aten.adaptive_max_pool2d.default",
    "aten.max.dim",
}


@dataclass(frozen=True, slots=True)
class Branches:
    """The decisions of one layer at one sample, in the exact network.

    Attributes:
        key: of the reading that holds them.
        layer: name of the node that decided.
        kind: `"activation"` (which side of a kink) or `"pooling"` (which entry is the largest).
        shape: of the choices in the graph.
        chosen: what was decided: a mask, or for each row of windows their positions.
        values: pooling: (windows, candidates), equal integers for equal numbers; activation: where
            the number lies exactly on the kink.
    """

    key: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    outcome: NDArray[Any]
    values: Indices | Mask


@dataclass(frozen=True, slots=True)
class Flips:
    """How many decisions of one layer differ between two runs.

    Attributes:
        layer, kind: as in `Branches`.
        decisions: how many there are.
        flips: how many differ where the exact network has no tie.
        tie_flips: how many differ where it has one.
    """

    layer: str
    kind: str
    decisions: int
    flips: int
    tie_flips: int


def branches_of(capture: Capture, run: ForwardRun, A: Arithmetic[Any]) -> tuple[Branches, ...]:
    """Every decision that the backward half of the graph uses."""
    branches = []
    for key, source, decide, arguments in saved_for_backward(capture):
        outcome = run.saved_values.values[key]
        if decide is not None:
            producer = source.args[0] if str(source.target) == "aten.relu.default" else source
            preactivation = run.values.get(str(producer))
            is_tied = np.zeros(outcome.shape, dtype=bool)
            for kink in _kinks(arguments) if preactivation is not None else ():
                is_tied = is_tied | (index_arrays.of_one(A.sign(A.sub(preactivation, kink))) == 0)
            branches.append(
                Branches(key, source.name, "activation", outcome.shape, outcome, is_tied)
            )
        elif (pooling := _pooling_of(source)) is not None:
            value_numbers = A.values(run.values[str(pooling.args[0])])
            candidates = _windows(pooling, value_numbers)
            positions = np.asarray(outcome).reshape(len(candidates), -1)
            branches.append(
                Branches(key, pooling.name, "pooling", outcome.shape, positions, candidates)
            )
    return tuple(branches)


def flips(exact: Sequence[Branches], other: SavedValues, keys: Mapping[str, str]) -> list[Flips]:
    """Where `other`, the readings of another run, decided differently.

    Args:
        exact: the decisions of the exact network.
        other: of the other run.
        keys: from a key of the exact network to the key of the other run.
    """
    flips_by_layer = []
    for branch in exact:
        outcome = np.asarray(other.values[keys[branch.key]]).reshape(branch.outcome.shape)
        differs = outcome != branch.outcome
        if branch.kind == "pooling":
            pick = np.take_along_axis
            is_tied = pick(branch.values, outcome, -1) == pick(branch.values, branch.outcome, -1)
        else:
            is_tied = np.asarray(branch.values, dtype=bool)
        ties = int((differs & is_tied).sum())
        flips_by_layer.append(
            Flips(branch.layer, branch.kind, differs.size, int(differs.sum()) - ties, ties)
        )
    return flips_by_layer


def corresponding(exact: Sequence[Branches], capture: Capture) -> dict[str, str] | None:
    """The keys of the same decisions in another capture of the network; None if they differ."""
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
    """J^T v of a batch in floating point, with the decisions given.

    Args:
        capture: of the batch, in the format.
        x: (batch, *shape), in the format.
        v: (batch, K), in the format.
        samples: the decisions of each sample.

    Returns:
        (batch, *shape), in the format; None where the graph decides in other places.
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
            outcome_by_node[key] = (
                outcome if decide is None else _stand_in(outcome, arguments).to(v.dtype)
            )
    gradient: Tensor = _Frozen(capture.module, outcome_by_node).run(x, v)[1]
    return gradient


class _Frozen(fx.Interpreter):
    """Runs a graph with some decisions made beforehand."""

    def __init__(self, module: fx.GraphModule, outcome_by_node: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._outcome_by_node = outcome_by_node

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        if n.name in self._outcome_by_node:
            return self._outcome_by_node[n.name]
        keys = [f"{n.name}.{position}" for position in range(len(n.args))]
        if not any(key in self._outcome_by_node for key in keys):
            return super().run_node(n)
        arguments, options = self.fetch_args_kwargs_from_env(n)
        pairs = zip(keys, arguments, strict=True)
        return n.target(*(self._outcome_by_node.get(k, a) for k, a in pairs), **options)  # type: ignore[operator]


def _joined(outcomes: list[Tensor], batch_shape: tuple[int, ...]) -> Tensor:
    """The choices of single samples as one batch of the shape `whole`."""
    shape = outcomes[0].shape
    differ = [d for d, (n, m) in enumerate(zip(batch_shape, shape, strict=True)) if n != m]
    return torch.cat(outcomes, differ[0]) if differ else outcomes[0]


def _stand_in(mask: Tensor, arguments: Sequence[Any]) -> Tensor:
    """Numbers that make an activation's backward operation decide as the mask says."""
    low, *high = _kinks(arguments)
    inside = (low + high[0]) / 2 if high else low + 1.0
    return torch.where(mask, inside, low - 1.0)


def _kinks(arguments: Sequence[Any]) -> tuple[float, ...]:
    """Where an activation's backward operation decides: ReLU's threshold, 0, or two bounds."""
    if len(arguments) == 3:
        return (float(arguments[2]),)
    is_leaky = isinstance(arguments[3], bool)
    return (0.0,) if is_leaky else (float(arguments[2]), float(arguments[3]))


def _pooling_of(source: Node) -> Node | None:
    """The pooling whose choices the node `source` is."""
    if source.target is not getitem or source.args[1] != 1:
        return None
    producer = source.args[0]
    assert isinstance(producer, Node)
    return producer if str(producer.target) in _POOLINGS else None


def _windows(pooling: Node, values: Indices) -> Indices:
    """The candidates that the positions of a pooling count: (rows, candidates)."""
    if str(pooling.target) == "aten.max.dim":
        along = np.moveaxis(values, int(str(pooling.args[1])), -1)
        return along.reshape(-1, along.shape[-1])
    return values.reshape(int(np.prod(values.shape[:-2])), -1)
