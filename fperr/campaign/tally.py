"""What a run of a campaign has done so far."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What a run has done so far.

    Attributes:
        total: Number of cells to run.
        finished: Number of cells whose parts were written.
        failed: Number of cells that were recorded as failed.
        begun: Number of executions, those that a death cut off among them.
        seconds: Seconds of computing of the finished cells.
        refused: Words about workers that were refused.
    """

    total: int
    finished: int = 0
    failed: int = 0
    begun: int = 0
    seconds: float = 0.0
    refused: list[str] = field(default_factory=list)


Advance = Callable[[Tally], object]
