"""Which sample each row of an attack's batch is."""

import torch
from torch import Tensor

_MOST_COMPARED = 4096  # samples of a whole batch whose order is checked


class SampleMatcher:
    """Tells the samples of a batch by the inputs that they are nearest to.

    Each row is the sample whose input is nearest in the maximum norm; certainly so, by the triangle
    inequality, where it is nearer than half the way to the next input. A batch whose rows all are
    needs no search if the batch of that length before was in the same order. A batch of n rows is
    all samples in order, if inputs are given for up to 4,096 samples unless it certainly is another
    order.

    Args:
        n: the number of samples.
        originals: (n, *shape), the inputs; None: the first batch of n rows.
    """

    def __init__(self, n: int, originals: Tensor | None) -> None:
        self._n, self._originals = n, originals
        self._are_given = originals is not None
        self.everybody = torch.arange(n)
        self._reaches: Tensor | None = None
        self._found = self.everybody
        self.uncertain = 0

    @property
    def is_waiting(self) -> bool:
        """The inputs are not known yet."""
        return self._originals is None

    def rows(self, x: Tensor) -> Tensor:
        """(batch,) int64 on the CPU, for x (batch, *shape).

        Raises:
            ValueError: a part of the batch comes first, and the inputs are not known; or their
                shape is another one.
        """
        is_whole = len(x) == self._n
        if self._originals is None and is_whole:
            self._originals = x.detach().clone()
        if self._originals is None:
            raise ValueError(
                f"the attack calls the model on {len(x)} rows, and y has {self._n}: give the clean "
                "inputs, record(model, x, y), so that its samples can be told apart"
            )
        if self._originals.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the attack calls the model on {tuple(x.shape)}, and the clean inputs are "
                f"{tuple(self._originals.shape)}: give record() the x that the attack gets"
            )
        if is_whole and not (self._are_given and self._n <= _MOST_COMPARED):
            return self.everybody
        return self._nearest(x, self._originals)

    def _nearest(self, x: Tensor, originals: Tensor) -> Tensor:
        every = originals.flatten(1)
        every = every.to(torch.promote_types(every.dtype, torch.float32))  # cdist has no half
        flat = x.detach().flatten(1).to(every).nan_to_num()
        if len(flat) == self._n and len(self._found) != self._n:
            self._found = self.everybody
        if len(flat) == len(self._found) and self._are_certain(flat, every, self._found):
            return self._found
        nearest = torch.cdist(flat, every, p=torch.inf).argmin(1).cpu()
        is_certain = self._are_certain(flat, every, nearest)
        if not is_certain and len(flat) == self._n:
            return self.everybody
        self._found = nearest
        self.uncertain += not is_certain
        return self._found

    def _are_certain(self, flat: Tensor, every: Tensor, found: Tensor) -> bool:
        chosen = found.to(flat.device)
        apart = (flat - every[chosen]).abs().amax(1)
        return bool((apart < self._reach(every)[chosen]).all())

    def _reach(self, every: Tensor) -> Tensor:
        """(n,): half the way from each input to the next one."""
        if self._reaches is None:
            between = [torch.cdist(part, every, p=torch.inf) for part in torch.split(every, 512)]
            whole = torch.cat([part.topk(2, dim=1, largest=False).values[:, 1] for part in between])
            self._reaches = whole / 2
        return self._reaches
