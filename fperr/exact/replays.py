"""What backward passes and replays of captured graphs need of PyTorch's state."""

from contextlib import AbstractContextManager

import torch


def without_autocast() -> AbstractContextManager[object]:
    """A context without autocast.

    A graph holds the casts that autocast made, and no others; and PyTorch asks for backward passes
    outside of autocast, in the dtypes of their forward operations.
    """
    context: AbstractContextManager[object] = torch._C._DisableAutocast()
    return context
