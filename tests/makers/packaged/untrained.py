"""Networks with random weights, in a state such as training leaves."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 4
_IMAGES_FOR_STATISTICS = 32
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def untrained(
    build: Callable[[], nn.Module], *shape: int, batch: int = 2
) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, and inputs (batch, *shape) in [0, 1].

    Its weights are those that the package draws. Parameters that begin constant (scales of 1 or
    1e-6, biases and heads of 0) are moved, so that every branch reaches the logits. Batch norms
    have the statistics of random inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        _move_constants(model)
        _settle_batch_norms(model, torch.rand(_IMAGES_FOR_STATISTICS, *shape))
        return model, torch.rand(batch, *shape)


@torch.no_grad()
def _move_constants(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.min() == parameter.max():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


@torch.no_grad()
def _settle_batch_norms(model: nn.Module, x: Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
        norm.train()
    if norms:
        model(x)
        model.eval()
