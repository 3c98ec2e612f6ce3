"""Constructors: operations that make tensors and use the values of none.

PyTorch computes them, in the dtype that the graph writes (see `fperr.exact.node_kinds`), so they
need no exact meaning.
"""

# operations that use the shape, dtype and device of their first argument, and not its values
SHAPE_OF_FIRST = frozenset(
    f"aten.{name}.default"
    for name in (
        "empty_like",
        "full_like",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones_like",
        "zeros_like",
    )
)
