"""Which sample each row of an attack's batch is."""

import torch
from torch import Tensor


class Identities:
    """Tells the samples of a batch by the inputs that they are nearest to.

    A batch of n rows is taken to be all samples in order. Of any other, each row is the sample
    whose input is nearest in the maximum norm. What was found for one batch is kept for the next
    of that length while every row is nearer to its sample than half the way to the next sample:
    by the triangle inequality it cannot have changed.

    Args:
        n: the number of samples.
        originals: (n, *shape), the inputs; None: the first batch of n rows.
    """

    def __init__(self, n: int, originals: Tensor | None) -> None:
        self._n, self._originals = n, originals
        self._everybody = torch.arange(n)
        self._found = torch.empty(0, dtype=torch.int64)
        self._reach = torch.empty(0)

    def rows(self, x: Tensor) -> Tensor:
        """(batch,) int64 on the CPU, for x (batch, *shape).

        Raises:
            ValueError: a part of the batch comes first, and the inputs are not known.
        """
        if len(x) == self._n:
            if self._originals is None:
                self._originals = x.detach().clone()
            return self._everybody
        if self._originals is None:
            raise ValueError(
                f"the attack calls the model on {len(x)} rows, and y has {self._n}: give the clean "
                "inputs, record(model, y, x=x), so that its samples can be told apart"
            )
        flat = x.detach().flatten(1).to(self._originals)
        originals = self._originals.flatten(1)
        if len(flat) == len(self._found):
            apart = (flat - originals[self._found.to(flat.device)]).abs().amax(1)
            if bool((apart < self._reach).all()):
                return self._found
        nearest = torch.cdist(flat, originals, p=torch.inf).argmin(1)
        between = torch.cdist(originals[nearest], originals, p=torch.inf)
        between.scatter_(1, nearest[:, None], torch.inf)
        self._reach = between.amin(1) / 2
        self._found = nearest.cpu()
        return self._found
