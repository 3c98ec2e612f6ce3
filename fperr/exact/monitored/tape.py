"""The branches that one run took, in order, for another run to take them as data."""

from torch import Tensor


class BranchTape:
    """The answers to a run's questions, in the order in which they were asked.

    Two runs of the same graph ask the same questions in the same order: where a number exceeds a
    threshold, which one is the largest, which results are exactly 0.
    """

    def __init__(self) -> None:
        self._answers: list[Tensor | None] = []
        self._next = 0

    def record(self, answer: Tensor | None) -> None:
        """Append an answer."""
        self._answers.append(answer)

    def read(self) -> Tensor | None:
        """The next answer."""
        self._next += 1
        return self._answers[self._next - 1]

    @property
    def is_read(self) -> bool:
        """Whether every answer has been read."""
        return self._next == len(self._answers)
