"""The matching of the rows of an attack's batch to samples, by the nearest clean input."""

import torch
from torch import Tensor

_MOST_COMPARED = 4096  # samples of a complete batch whose order is checked


class SampleMatcher:
    """Matches each row of a batch to the sample whose clean input is nearest to it.

    Nearest in the maximum norm. The match is certain, by the triangle inequality, where the row is
    nearer than half the distance from that input to the next one.

    Two cases need no search. A batch whose rows all match in the order of the last batch of that
    length, with certainty, is taken in that order. And a batch of n rows is taken as all samples in
    order: always if no inputs are given, or more than 4,096; else unless the rows match another
    order with certainty.

    Args:
        n: Number of samples.
        clean_inputs: (n, *shape), the clean inputs; None: the first batch of n rows stands for
            them.

    Attributes:
        in_order: (n,) int64 on the CPU, the numbers of all samples in order.
        uncertain: Number of batches in which some match was not certain.
    """

    def __init__(self, n: int, clean_inputs: Tensor | None) -> None:
        self._n, self._clean_inputs = n, clean_inputs
        self._were_given = clean_inputs is not None
        self.in_order = torch.arange(n)
        self._half_distances: Tensor | None = None
        self._last_match = self.in_order
        self.uncertain = 0

    @property
    def needs_inputs(self) -> bool:
        """Whether the clean inputs are not known yet."""
        return self._clean_inputs is None

    def samples_of(self, x: Tensor) -> Tensor:
        """The sample that each row of x (batch, *shape) is, (batch,) int64 on the CPU.

        Raises:
            ValueError: a part of the batch comes first, and the inputs are not known; or their
                shape is another one.
        """
        is_complete = len(x) == self._n
        if self._clean_inputs is None and is_complete:
            self._clean_inputs = x.detach().clone()
        if self._clean_inputs is None:
            raise ValueError(
                f"the attack calls the model on {len(x)} rows, and y has {self._n}: give the clean "
                "inputs, record(model, x, y), so that its samples can be told apart"
            )
        if self._clean_inputs.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the attack calls the model on {tuple(x.shape)}, and the clean inputs are "
                f"{tuple(self._clean_inputs.shape)}: give record() the x that the attack gets"
            )
        if is_complete and not (self._were_given and self._n <= _MOST_COMPARED):
            return self.in_order
        return self._nearest(x, self._clean_inputs)

    def _nearest(self, x: Tensor, clean_inputs: Tensor) -> Tensor:
        inputs = clean_inputs.flatten(1)
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))  # cdist has no half
        rows = x.detach().flatten(1).to(inputs).nan_to_num()
        if len(rows) == self._n and len(self._last_match) != self._n:
            self._last_match = self.in_order
        if len(rows) == len(self._last_match) and self._is_certain(rows, inputs, self._last_match):
            return self._last_match
        nearest = torch.cdist(rows, inputs, p=torch.inf).argmin(1).cpu()
        is_certain = self._is_certain(rows, inputs, nearest)
        if not is_certain and len(rows) == self._n:
            return self.in_order
        self._last_match = nearest
        self.uncertain += not is_certain
        return self._last_match

    def _is_certain(self, rows: Tensor, inputs: Tensor, match: Tensor) -> bool:
        """Whether every row is nearer to its match than half the distance to the next input."""
        samples = match.to(rows.device)
        distances = (rows - inputs[samples]).abs().amax(1)
        return bool((distances < self._half_distances_of(inputs)[samples]).all())

    def _half_distances_of(self, inputs: Tensor) -> Tensor:
        """Half the distance from each input (n, entries) to the next, (n,); inf without one."""
        if len(inputs) == 1:
            return inputs.new_full((1,), torch.inf)
        if self._half_distances is None:
            # 512 rows at a time, because all n^2 distances may not fit in memory
            distances = [
                torch.cdist(block, inputs, p=torch.inf) for block in torch.split(inputs, 512)
            ]
            # of the two smallest distances of a row, the first is that of the input to itself
            to_next = torch.cat([d.topk(2, dim=1, largest=False).values[:, 1] for d in distances])
            self._half_distances = to_next / 2
        return self._half_distances
