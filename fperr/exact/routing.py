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

from fperr.exact.arithmetic import Arithmetic, Indices, Mask
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import FloatRun, ForwardRun, Readings, reads
from fperr.exact.operations import OPERATIONS

_POOLINGS = {
    "aten.max_pool2d_with_indices.default",
    "aten.adaptive_max_pool2d.default",
    "aten.max.dim",
}


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions of one layer at one sample, in the exact network.

    Attributes:
        key: of the reading that holds them.
        layer: name of the node that decided.
        kind: `"activation"` (which side of a kink) or `"pooling"` (which entry is the largest).
        chosen: what was decided: a mask, or for each window a position.
        values: pooling: (windows, candidates), equal integers for equal numbers; activation: where
            the number lies exactly on the kink.
    """

    key: str
    layer: str
    kind: str
    chosen: NDArray[Any]
    values: Indices | Mask


@dataclass(frozen=True, slots=True)
class Flips:
    """How many decisions of one layer differ between two runs.

    Attributes:
        layer, kind: as in `Decisions`.
        decisions: how many there are.
        flips: how many differ where the exact network has no tie.
        tie_flips: how many differ where it has one.
    """

    layer: str
    kind: str
    decisions: int
    flips: int
    tie_flips: int


def decisions_of(capture: Capture, run: ForwardRun, A: Arithmetic) -> tuple[Decisions, ...]:
    """Every decision that the backward half of the graph uses."""
    found = []
    for key, source, decide, arguments in reads(capture):
        chosen = run.readings.values[key]
        if decide is not None:
            producer = source.args[0] if str(source.target) == "aten.relu.default" else source
            number = run.values.get(str(producer))
            tied = np.zeros(chosen.shape, dtype=bool)
            if number is not None and _kink(arguments) is not None:
                tied = A.sign(A.sub(number, _kink(arguments))) == 0
            found.append(Decisions(key, source.name, "activation", chosen, tied))
        elif (pooling := _pooling_of(source)) is not None:
            values = A.values(run.values[str(pooling.args[0])])
            candidates = _windows(pooling, values)
            positions = np.asarray(chosen).reshape(len(candidates), -1)
            found.append(Decisions(key, pooling.name, "pooling", positions, candidates))
    return tuple(found)


def flips(exact: Sequence[Decisions], other: Readings, keys: Mapping[str, str]) -> list[Flips]:
    """Where `other`, the readings of another run, decided differently.

    Args:
        exact: the decisions of the exact network.
        other: of the other run.
        keys: from a key of the exact network to the key of the other run.
    """
    found = []
    for mine in exact:
        theirs = np.asarray(other.values[keys[mine.key]]).reshape(mine.chosen.shape)
        differ = theirs != mine.chosen
        if mine.kind == "pooling":
            pick = np.take_along_axis
            tied = pick(mine.values, theirs, -1) == pick(mine.values, mine.chosen, -1)
        else:
            tied = np.asarray(mine.values, dtype=bool)
        ties = int((differ & tied).sum())
        found.append(Flips(mine.layer, mine.kind, differ.size, int(differ.sum()) - ties, ties))
    return found


def corresponding(exact: Sequence[Decisions], capture: Capture) -> dict[str, str] | None:
    """The keys of the same decisions in another capture of the network; None if they differ."""
    theirs = [
        key
        for key, source, decide, _ in reads(capture)
        if decide is not None or _pooling_of(source) is not None
    ]
    if len(theirs) != len(exact):
        return None
    return {mine.key: key for mine, key in zip(exact, theirs, strict=True)}


@torch.no_grad()
def frozen_gradient(
    capture: Capture,
    shapes: Mapping[str, tuple[int, ...]],
    run: FloatRun,
    v: Tensor,
    choices: Sequence[Mapping[str, Any]],
) -> Tensor:
    """J^T v of a batch in floating point, with the decisions given.

    Args:
        capture: of the batch, in the format.
        shapes: of every node for one sample.
        run: what the format's forward pass left.
        v: (batch, K), the format's logit gradient.
        choices: for each sample, what every key decides.

    Returns:
        (batch, *shape), in the format.
    """
    values: dict[str, Any] = {**capture.constants(), **run.values}
    values[capture.placeholders[1].name] = v
    for key, source, decide, arguments in reads(capture):
        if key in choices[0]:
            parts = [torch.from_numpy(np.asarray(c[key])) for c in choices]
            whole = _joined(parts, shapes[source.name], values[source.name])
            if decide is not None:
                whole = _stand_in(whole, arguments, values[source.name])
            values[key] = whole
    for node in capture.backward:
        decisions = OPERATIONS[name].decisions if (name := str(node.target)) in OPERATIONS else {}
        arguments = fx.node.map_arg(node.args, lambda n: values[n.name])
        stood_in = [
            values.get(f"{node.name}.{position}", argument) if position in decisions else argument
            for position, argument in enumerate(arguments)
        ]
        options = fx.node.map_arg(node.kwargs, lambda n: values[n.name])
        values[node.name] = node.target(*stood_in, **options)  # type: ignore[operator]
    gradient: Tensor = values[capture.results[1].name]
    return gradient


def _joined(parts: list[Tensor], shape: tuple[int, ...], whole: Tensor) -> Tensor:
    """The choices of single samples, each of `shape`, as one batch like `whole`."""
    differ = [d for d, (n, m) in enumerate(zip(whole.shape, shape, strict=True)) if n != m]
    reshaped = [part.reshape(shape) for part in parts]
    joined = torch.cat(reshaped, differ[0]) if differ else reshaped[0]
    return joined.to(whole.device)


def _stand_in(mask: Tensor, arguments: Sequence[Any], like: Tensor) -> Tensor:
    """Numbers that make an activation's backward operation decide as the mask says."""
    if len(arguments) > 3 and not isinstance(arguments[3], bool):  # clipped to [low, high]
        low, high = (float(bound) for bound in arguments[2:4])
        inside, outside = (low + high) / 2, low
    else:
        kink = _kink(arguments) or 0.0
        inside, outside = kink + 1.0, kink - 1.0
    return torch.where(mask, inside, outside).to(like)


def _kink(arguments: Sequence[Any]) -> float | None:
    """The threshold of an activation's backward operation: ReLU's, or 0 of a leaky one."""
    if len(arguments) == 3:
        return float(arguments[2])
    return 0.0 if isinstance(arguments[3], bool) else None


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
