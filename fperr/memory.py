"""What to do when a device has no memory left for a batch."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_pieces(run: Callable[[slice], Result], piece: slice) -> list[Result]:
    """Run on a piece of a batch, or on its halves where the device's memory does not do.

    Args:
        run: Function of a piece, which has changed nothing when it raises.
        piece: Numbers of the samples, `slice(start, stop)`.

    Returns:
        The results, in order of the pieces.

    Raises:
        torch.OutOfMemoryError: A single sample does not fit.

    Example:
        >>> in_pieces(lambda piece: piece.stop - piece.start, slice(0, 7))
        [7]
    """
    try:
        return [run(piece)]
    except torch.OutOfMemoryError:
        if piece.stop - piece.start < 2:
            raise
    # outside of the handler, whose traceback would hold the tensors of the failed run
    middle = (piece.start + piece.stop) // 2
    first, second = slice(piece.start, middle), slice(middle, piece.stop)
    return [*in_pieces(run, first), *in_pieces(run, second)]
