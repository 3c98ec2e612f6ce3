"""A captured network in float64 and float32, for one forward run and any number of pullbacks.

float64 leads: it decides the branches, and float32 takes them. Both runs are watched, and say of
which samples a rule doubts them: see `fperr.exact.monitored.watch`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fperr.exact.graph import Capture
from fperr.exact.interpreter import ForwardRun, Interpreter, SavedValues
from fperr.exact.monitored.arithmetic import MonitoredArithmetic
from fperr.exact.monitored.array import MonitoredArray, by_sample
from fperr.exact.monitored.tape import BranchTape
from fperr.exact.monitored.watch import Rule


class Doubts:
    """What runs say of their samples: the first rule that leaves each in doubt."""

    def __init__(self) -> None:
        self._masks: list[tuple[Tensor, str]] = []
        self._conditions: list[Tensor] = []

    def add(self, samples: Tensor, rule: Rule, dtype: torch.dtype) -> None:
        """See `Watcher`."""
        self._masks.append((samples, rule.sentence(dtype)))

    def note(self, conditions: Tensor) -> None:
        """See `Watcher`."""
        self._conditions.append(conditions)

    def condition_of_samples(self, count: int) -> Tensor:
        """(count,): the largest condition of any sum of a sample, in norm, and at least 1."""
        known = [c.nan_to_num(1.0, 1.0).expand(count) for c in self._conditions]
        return torch.stack(known).amax(0).clamp_min(1.0) if known else torch.ones(count)

    def of_samples(self, count: int) -> list[str | None]:
        """The first doubt of each sample, in words; None: there is none."""
        doubts: list[str | None] = [None] * count
        if self._masks:
            # at once, so that no rule waits for the device
            masks = torch.stack([mask.expand(count) for mask, _ in self._masks])
            first = masks.to(torch.uint8).argmax(0)
            for i in torch.nonzero(masks.any(0)).flatten().tolist():
                doubts[i] = self._masks[int(first[i])][1]
        return doubts


@dataclass(frozen=True, slots=True)
class PairRun:
    """A forward run in both formats.

    Attributes:
        leader, follower: Runs in float64 and in float32. Shapes are those of a single sample; every
            array has a leading dimension of samples.
    """

    leader: ForwardRun[MonitoredArray]
    follower: ForwardRun[MonitoredArray]


class MonitoredPair:
    """The captured network in both formats.

    Args:
        capture: Network, captured for a single sample.
        device: Device to compute on.
        sizes: What the runs know of the sizes of terms: `"coarse"`, a bound for each sample;
            `"by entry"`, one for each number; `"by number"`, these, and value numbers that decide
            exact ties.

    Attributes:
        leader: Interpreter of float64 for readers of a result. It reports no doubts: use `forward`
            and `pullback` for new results.
        of_constants: Doubts in what is computed from constants alone, the same for every sample.
    """

    def __init__(
        self,
        capture: Capture,
        device: torch.device | str,
        sizes: Literal["coarse", "by entry", "by number"],
    ) -> None:
        self.of_constants = Doubts()
        tape = BranchTape()
        # constants may take branches, too, and the follower takes the leader's
        self.leader, self._follower = (
            self._interpreter(capture, arithmetic, tape, is_coarse=sizes == "coarse")
            for arithmetic in (
                MonitoredArithmetic(device=device, with_value_numbers=sizes == "by number"),
                MonitoredArithmetic(torch.float32, device, follows=True),
            )
        )

    def _interpreter(
        self,
        capture: Capture,
        arithmetic: MonitoredArithmetic,
        tape: BranchTape,
        *,
        is_coarse: bool,
    ) -> Interpreter[MonitoredArray]:
        # constants are computed once, with the sizes of every number
        interpreter = Interpreter(capture, arithmetic.reporting(self.of_constants, tape))
        interpreter.arithmetic = arithmetic.with_sample_sizes() if is_coarse else arithmetic
        return interpreter

    def faults(self, doubts: Doubts, samples: int) -> list[str | None]:
        """Why each sample is in doubt, in words; None: it is not."""
        return [
            of_constants or of_run
            for of_constants, of_run in zip(
                self.of_constants.of_samples(samples), doubts.of_samples(samples), strict=True
            )
        ]

    def forward(self, x: Tensor, doubts: Doubts) -> PairRun:
        """The forward run at x (samples, *shape).

        Raises:
            StaleCaptureError: Weights were changed after the capture.
        """
        self.leader.capture.constants()
        tape, runs = BranchTape(), []
        for interpreter in (self.leader, self._follower):
            watched, arithmetic = _watched(interpreter, doubts, tape)
            runs.append(watched.forward_from(arithmetic.from_samples(x[:, None]), has_checked=True))
            arithmetic.watch_result(runs[-1].logits)
        assert tape.is_read
        return PairRun(*runs)

    def pullback(
        self,
        saved: Sequence[SavedValues[MonitoredArray]],
        v: Sequence[Tensor],
        doubts: Doubts,
        *,
        has_checked: bool = False,
    ) -> list[Tensor]:
        """J^T v in one format or in both, each (samples or 1, entries) float64.

        Args:
            saved: Saved values of a run in float64; or of both runs.
            v: (samples or 1, K) for each of them.
            doubts: Doubts to add to.
            has_checked: Whether the caller has just run `forward`, which checks the weights.

        Raises:
            StaleCaptureError: Weights were changed after the capture.
        """
        if not has_checked:
            self.leader.capture.constants()
        tape, gradients = BranchTape(), []
        pairs = zip((self.leader, self._follower), saved, v, strict=False)
        for interpreter, saved_values, cotangents in pairs:
            watched, arithmetic = _watched(interpreter, doubts, tape)
            entering = arithmetic.from_samples(cotangents[:, None])
            gradient = watched.pullback(saved_values, entering, has_checked=True)
            arithmetic.watch_result(gradient)
            gradients.append(by_sample(gradient.values).to(torch.float64))
        return gradients


def _watched(
    interpreter: Interpreter[MonitoredArray], doubts: Doubts, tape: BranchTape
) -> tuple[Interpreter[MonitoredArray], MonitoredArithmetic]:
    """The interpreter for a single run, which adds to the doubts, and its arithmetic."""
    arithmetic = interpreter.arithmetic
    assert isinstance(arithmetic, MonitoredArithmetic)
    arithmetic = arithmetic.reporting(doubts, tape)
    watched = copy.copy(interpreter)
    watched.arithmetic = arithmetic
    return watched, arithmetic
