"""The first operation at which the exact network and PyTorch in float64 differ, in words."""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, NodeValue, Output, T
from fperr.exact.audit.exact_run_numbers import with_samples
from fperr.exact.audit.float64_branches import ExactNumbers
from fperr.exact.audit.float64_error import error_of_norm, norm
from fperr.exact.audit.float64_run import Float64Run, float64_run
from fperr.exact.graph import Node
from fperr.exact.index_arrays import IndexArray
from fperr.exact.interpreter import ForwardRun, Interpreter


def first_difference(
    interpreter: Interpreter[T],
    run: ForwardRun[T],
    x: Tensor,
    v: Tensor,
    exact: ExactNumbers,
    sample: int,
) -> str:
    """The first operation whose value differs at a sample, with both values, in words.

    Args:
        interpreter: Exact network, for a single sample.
        run: Forward run at x.
        x: (samples, *shape), taken exactly.
        v: (samples, K), floating point, taken exactly.
        exact: Numbers of the run.
        sample: Position of the sample in the batch.
    """
    A, capture = interpreter.arithmetic, interpreter.capture
    float64 = float64_run(capture, x, v, exact, everything=True)
    values: dict[str, NodeValue[T]] = dict(run.values)

    def observe(node: Node, value: NodeValue[T]) -> None:
        values[node.name] = value

    interpreter.pullback(run.saved_values, A.from_samples(v.to(torch.float64)[:, None]), observe)
    for node in (*capture.forward, *capture.backward):
        for position, rows, numbers in _results(float64, node, values.get(node.name)):
            difference = _difference(rows, _numbers(A, numbers), len(x), sample)
            if difference:
                result = f", result {position}" if position else ""
                operation = f"{node.target} ({node}{result})"
                return f"the first value that differs is that of {operation}: {difference}"
    return "no operation of the graph differs by itself"


def _results(
    float64: Float64Run, node: Node, exact: NodeValue[T]
) -> Iterator[tuple[int, Tensor, T | IndexArray]]:
    """The results of a node that both runs have: position, rows in float64, exact numbers."""
    rows = float64.values[node.name]
    if exact is None or rows is None:
        return
    # a node with several results in float64 has as many in the exact run
    exact_results = exact if isinstance(exact, tuple | list) else [exact]
    results = cast(Sequence[Output[T]], exact_results)
    pairs = zip([rows] if isinstance(rows, Tensor) else rows, results, strict=True)
    for position, (computed, numbers) in enumerate(pairs):
        if computed is not None and numbers is not None:
            yield position, computed if node.name in float64.batched else computed[None], numbers


def _numbers(A: Arithmetic[T], a: T | IndexArray) -> Tensor:
    """(samples or 1, *shape) of an array, a mask or index array."""
    return with_samples(a) if index_arrays.is_index_array(a) else A.to_samples(a)


def _difference(rows: Tensor, exact: Tensor, samples: int, sample: int) -> str:
    """Where the numbers of a sample differ most, with both values; "" where they agree.

    Args:
        rows: Numbers of float64, (rows, *shape), the samples first and then their copies; or a
            single row for all.
        exact: Exact numbers, (samples or 1, *shape).
        samples: Number of samples.
        sample: Position of the sample.
    """
    is_single = len(rows) == 1
    plain = rows[:1] if is_single else rows[:samples]
    computed = plain[0 if is_single else sample].to(torch.float64).cpu()
    true = exact[sample if len(exact) > 1 else 0].to(torch.float64).cpu().expand_as(computed)
    distance = torch.where(computed == true, 0.0, (computed - true).abs()).nan_to_num(math.inf)
    error = 0.0
    if rows.is_floating_point():
        # a single row has no copies, so it stands for its copy, too
        with_copies = rows if not is_single else rows.repeat(2, *[1] * (rows.ndim - 1))
        errors = error_of_norm(with_copies.to(torch.float64), len(plain))
        error = float(errors[-1 if is_single else sample])
    if not norm(distance.flatten()) > error:
        return ""
    worst = int(distance.argmax())
    position = tuple(int(i) for i in np.unravel_index(worst, tuple(computed.shape)))
    return (
        f"{float(computed.flatten()[worst]):.17g} in float64, {float(true.flatten()[worst]):.17g} "
        f"exactly, at {position}"
    )
