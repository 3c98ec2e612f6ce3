"""Values of nodes in float64 with a leading dimension of rows, and operations on every row."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeGuard, cast

import torch
from torch import Tensor

# The value of a node: a tensor, or a list of tensors, of which an operation may leave out any.
NodeValue = Tensor | list[Tensor | None] | tuple[Tensor | None, ...] | None
# Which dimension of an argument is that of the rows: None for none; a list for lists of arguments.
RowDims: TypeAlias = "int | list[RowDims] | None"
_set_warnings = cast(
    Callable[[bool], None], vars(torch._C._functorch)["_set_vmap_fallback_warning_enabled"]
)


def is_real(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def by_rows(
    function: Callable[..., NodeValue], dims: Sequence[RowDims], arguments: Sequence[object]
) -> NodeValue:
    """The function of every row of the arguments.

    Args:
        function: Function of a single row.
        dims: Row dimension of each argument.
        arguments: Arguments with rows, and such that are the same for all rows.
    """
    if not any(map(_has_rows, dims)):
        return function(*arguments)
    # for each result, None where the operation leaves it out: `vmap` takes tensors alone
    gaps: list[int | None] = []

    def without_gaps(*row: object) -> Tensor | tuple[Tensor, ...]:
        result = function(*row)
        assert result is not None
        if isinstance(result, Tensor):
            return result
        gaps[:] = [None if tensor is None else 0 for tensor in result]
        return tuple(tensor for tensor in result if tensor is not None)

    # PyTorch prints, past Python's warnings, which operations it takes row by row; the switch
    # cannot be read, and is on unless somebody set it
    _set_warnings(False)
    try:
        result = torch.vmap(without_gaps, in_dims=tuple(dims))(*arguments)
    finally:
        _set_warnings(True)
    if isinstance(result, Tensor):
        return result
    tensors = iter(result)
    return [None if gap is None else next(tensors) for gap in gaps]


def tensor_by_rows(
    function: Callable[..., Tensor], dims: Sequence[RowDims], arguments: Sequence[object]
) -> Tensor:
    """`by_rows` for a function whose result is a single tensor."""
    result = by_rows(function, dims, arguments)
    assert isinstance(result, Tensor)
    return result


def _has_rows(dims: RowDims) -> bool:
    return any(map(_has_rows, dims)) if isinstance(dims, list) else dims is not None
