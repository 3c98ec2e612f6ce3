"""The operations for which the page docs/how_to/gpu_arithmetic.md claims how a GPU computes them.

Any other operation runs in the storage format, with float32 inside, and nothing is claimed of it.
"""

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

# bit by bit: float32 inside, and one rounding
ROUNDED = {
    "add", "sub", "rsub", "mul", "div", "reciprocal", "sqrt", "neg", "abs", "sign", "sgn",
    "maximum", "minimum", "amax", "amin", "max", "min", "aminmax", "relu", "clamp", "clamp_min",
    "clamp_max", "hardtanh", "leaky_relu", "threshold", "hardsigmoid", "hardswish", "lerp", "floor",
    "ceil", "round", "trunc", "where", "masked_fill", "fmod", "remainder", "square",
    "hardtanh_backward", "leaky_relu_backward", "threshold_backward",
    "hardsigmoid_backward", "hardswish_backward",
    "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "max_pool3d_with_indices",
    "max_pool3d_with_indices_backward", "addcmul", "addcdiv", "frexp",
    "ldexp",
}  # fmt: skip
# a few units in float32's last place, before the rounding
FEW_ULPS = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "erf", "erfc", "rsqrt", "pow",
    "sigmoid", "silu", "gelu", "elu", "softplus", "mish", "log_sigmoid_forward", "sin", "cos",
    "tanh_backward", "sigmoid_backward", "silu_backward", "gelu_backward", "elu_backward",
    "softplus_backward", "mish_backward", "log_sigmoid_backward",
}  # fmt: skip
# up to the order of a float32 sum
SUMS = {
    "convolution", "convolution_overrideable", "convolution_backward",
    "convolution_backward_overrideable", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv",
    "dot", "vdot", "linear", "linear_backward", "sum", "mean", "var", "std", "var_mean", "std_mean",
    "cumsum", "prod", "_softmax", "_log_softmax", "_safe_softmax", "_softmax_backward_data",
    "_log_softmax_backward_data", "logsumexp", "native_layer_norm", "native_batch_norm",
    "native_group_norm", "native_layer_norm_backward", "native_batch_norm_backward",
    "native_group_norm_backward", "avg_pool2d", "avg_pool2d_backward", "avg_pool3d",
    "avg_pool3d_backward", "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward",
    "nll_loss_forward", "nll_loss_backward", "linalg_vector_norm", "norm",
    "embedding_dense_backward", "upsample_bilinear2d", "upsample_bilinear2d_backward",
    "upsample_nearest2d_backward",
    "index_add", "scatter_add", "index_put", "_index_put_impl", "col2im",
    "_scaled_dot_product_attention_math",
}  # fmt: skip
# numbers move, or are made or compared
MOVES = {
    "cat", "stack", "index", "index_select", "gather", "scatter", "take", "flip", "roll", "repeat",
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "embedding", "im2col", "sort",
    "topk", "slice_backward", "select_backward", "slice_scatter", "select_scatter",
    "unfold_backward", "diagonal_scatter", "upsample_nearest2d", "pixel_shuffle",
    "pixel_unshuffle", "eq", "ne", "lt",
    "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_not",
    "bitwise_not", "bitwise_and", "bitwise_or", "argmax", "argmin", "any", "all", "equal",
    "_local_scalar_dense", "nonzero", "masked_select", "one_hot", "to", "view", "_unsafe_view",
    "_reshape_alias", "contiguous", "_to_copy", "item", "tril", "triu", "scalar_tensor",
    "nan_to_num",
}  # fmt: skip
_KNOWN = ROUNDED | FEW_ULPS | SUMS | MOVES


def is_claimed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether something is claimed of an operation, or it computes no floating-point numbers."""
    name, schema = function.overloadpacket.__name__, function._schema
    if name.rstrip("_") in _KNOWN or "copy" in name or name in ("clone", "detach", "lift_fresh"):
        return True
    if any(result.alias_info for result in schema.returns) and not schema.is_mutable:
        return True  # a view
    leaves = pytree.tree_leaves((args, kwargs))
    has_numbers = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)
    makes = name.endswith("_like") or name.startswith(("new_", "empty", "zeros", "ones", "full"))
    fills = name in ("zero_", "fill_")
    return not has_numbers or makes or fills
