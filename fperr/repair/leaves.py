"""What the gradient of a tensor flows to."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def leaves(output: Tensor) -> tuple[list[nn.Parameter], bool]:
    """The parameters that a tensor depends on, and whether it depends on any other leaf."""
    parameters, has_other = list[nn.Parameter](), False
    if output.grad_fn is None:
        if isinstance(output, nn.Parameter):
            return [output], False
        return parameters, output.requires_grad
    seen, waiting = {output.grad_fn}, [output.grad_fn]
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            parameters.append(leaf)
        elif isinstance(leaf, Tensor):
            has_other = True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return parameters, has_other


def has_derivative(output: Tensor) -> bool:
    """Whether a derivative of a tensor is taken, in reverse or in forward mode."""
    if output.requires_grad and torch.is_grad_enabled():
        return True
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(output).tangent is not None  # type: ignore[no-untyped-call]
