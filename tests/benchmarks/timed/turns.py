"""Works timed in turn, so that whatever else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable

import torch

Work = Callable[[], object]


def now() -> float:
    """The time when everything asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_in_turn(*works: Work, rounds: int) -> list[list[float]]:
    """For each round, the time of each work; every second round backwards."""
    times = []
    for number in range(rounds):
        places = range(len(works)) if number % 2 == 0 else reversed(range(len(works)))
        taken = [0.0] * len(works)
        for place in places:
            started = now()
            works[place]()
            taken[place] = now() - started
        times.append(taken)
    return times


def median_seconds(*works: Work, rounds: int) -> list[float]:
    """The median time of each work."""
    return [
        statistics.median(column)
        for column in zip(*seconds_in_turn(*works, rounds=rounds), strict=True)
    ]


def median_ratio(work: Work, plain: Work, rounds: int) -> float:
    """The median of the quotients of two times, after one call of each."""
    work(), plain()
    return statistics.median(a / b for a, b in seconds_in_turn(work, plain, rounds=rounds))
