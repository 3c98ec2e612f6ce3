"""Tensors that the graph makes by itself.

PyTorch computes them, in the dtype that the graph writes (see `fperr.exact.node_kinds`): they need
no exact meaning of their own.
"""

# operations that take the shape, dtype and device of their first argument, and none of its values
SHAPE_OF_FIRST = frozenset(
    f"aten.{name}.default"
    for name in (
        "empty_like",
        "full_like",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones_like",
        "zeros_like",
    )
)
