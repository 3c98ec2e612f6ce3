"""A ladder of engines for one captured network, from the cheapest to the one that proves most."""

from collections.abc import Sequence
from typing import Any

import torch

from fperr.exact.engines.ball import BallEngine
from fperr.exact.engines.base import ExactEngine
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.float64 import Float64Engine
from fperr.exact.engines.mpmath import MpmathEngine
from fperr.exact.graph import Capture
from fperr.exact.precision import MOST_BITS
from fperr.vocabulary import EngineName


class Ladder:
    """The engines that a sample may climb through; each is made when it is first used.

    Args:
        capture: Network, captured for a single sample.
        names: Engines, from the cheapest.
        bits: The most bits that are required of a gradient.
        device: Device of the float engines.
        by_rows: Whether all rows of J are computed.
    """

    def __init__(
        self,
        capture: Capture,
        names: Sequence[EngineName],
        bits: int,
        device: torch.device,
        *,
        by_rows: bool,
    ) -> None:
        self.names = tuple(names)
        self.by_rows = by_rows
        self._capture, self._bits, self._device = capture, bits, device
        self._engines: dict[EngineName, ExactEngine[Any]] = {}

    def of(self, capture: Capture) -> "Ladder":
        """The same ladder for another capture."""
        return Ladder(capture, self.names, self._bits, self._device, by_rows=self.by_rows)

    def first(self, bits: float) -> int:
        """The cheapest rung that may give so many bits."""
        enough = (i for i, name in enumerate(self.names) if MOST_BITS[name] >= bits)
        return next(enough, len(self.names) - 1)

    def engine(self, rung: int) -> ExactEngine[Any]:
        """The engine of a rung."""
        name = self.names[rung]
        if name not in self._engines:
            self._engines[name] = self._made(name)
        return self._engines[name]

    @property
    def used(self) -> dict[EngineName, ExactEngine[Any]]:
        """The engines that were used, from the cheapest."""
        return {name: self._engines[name] for name in self.names if name in self._engines}

    def _made(self, name: EngineName) -> ExactEngine[Any]:
        by_rows = self.by_rows
        # an engine is not asked for more than it may give: what needs more starts above it
        bits = int(min(self._bits, MOST_BITS[name]))
        if name == "float64":
            return Float64Engine(self._capture, self._device, by_rows=by_rows)
        if name == "double_word":
            return DoubleWordEngine(self._capture, bits, self._device, by_rows=by_rows)
        if name == "mpmath":
            return MpmathEngine(self._capture, bits, by_rows=by_rows)
        return BallEngine(self._capture, bits, by_rows=by_rows)
