"""The exact side of one format: its cast network, what its runs left behind, and their routing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError
from fperr.exact.graph import Capture
from fperr.exact.interpreter import Readings
from fperr.exact.readings import FloatRun
from fperr.exact.routing import Decisions, Flips, corresponding, flips, frozen_gradient
from fperr.measurement.maps import LinearMap
from fperr.measurement.network import FormatNetwork
from fperr.measurement.reference import ExactSample, Reference, State, map_of


@dataclass(frozen=True, slots=True)
class FormatSample:
    """One sample, exactly, through the network with weights and input rounded to a format.

    Attributes:
        z: the K exact logits of the cast network; None where weights or input overflow the format.
        cast: its J^T, or None.
        data: J^T through what the format's own forward pass left; None where that is not finite.
        flips: how its decisions differ from the exact network's, by layer; None where unknown.
    """

    z: list[Any] | None
    cast: LinearMap | None
    data: LinearMap | None
    flips: list[Flips] | None


class FormatReference:
    """The exact side of one format.

    Args:
        reference: of the model's own dtype.
        network: the model in the format.
        x: the inputs, of which the first gives the shape.
    """

    def __init__(self, reference: Reference, network: FormatNetwork, x: Tensor) -> None:
        self.network = network
        self._reference = reference
        self._single = network.capture(x[:1])
        constants = self._single.constants().values()
        self._weights_are_finite = all(bool(t.isfinite().all()) for t in constants)
        self._is_own = _same_network(self._single, reference.capture)
        self._engine = (
            reference.engine
            if self._is_own or not self._weights_are_finite
            else reference.engine_for(self._single)
        )

    def run(self, x: Tensor, v: Tensor) -> FloatRun:
        """What the format's forward pass leaves for the backward pass on a batch.

        Raises:
            CaptureAuditError: see `FormatNetwork.saved`.
        """
        return self.network.saved(x, v)

    def sample(self, x: Tensor, run: FloatRun, i: int, exact: ExactSample) -> FormatSample:
        """The exact side that belongs to sample i of a batch x, of which `run` is the run."""
        mine = x[i : i + 1]
        cast_x = self.network.cast(mine)
        if not (self._weights_are_finite and bool(cast_x.isfinite().all())):
            return FormatSample(None, None, None, None)
        if self._is_own and torch.equal(cast_x.double(), mine.double()):
            state = exact.state
        else:
            try:
                state = self._engine.state(cast_x)
            except ReferenceNotCertifiedError:
                return FormatSample(None, None, None, None)
        data = self._data(run, i, state)
        if data is None:
            return FormatSample(state.z, state.map, None, None)
        same = data.same_as(state.readings, state.interpreter.arithmetic)
        own = state.map if same else map_of(state, data, self._reference.vectors)
        keys = self._keys(exact)
        seen = None if keys is None else flips(exact.state.decisions, data, keys)
        return FormatSample(state.z, state.map, own, seen)

    def frozen_gradient(
        self, x: Tensor, v: Tensor, routes: Sequence[tuple[Decisions, ...] | None]
    ) -> Tensor | None:
        """The format's gradient on a batch with every decision that of the exact network.

        Args:
            x: (batch, *shape).
            v: (batch, K), the format's logit gradient.
            routes: the decisions of each sample; where they are missing, another one's are put in
                their place.

        Returns:
            (batch, *shape), or None where the format's graph decides in other places.
        """
        known = next(route for route in routes if route is not None)
        samples = [known if route is None else route for route in routes]
        with self.network.running():
            return frozen_gradient(self.network.capture(x), self.network.cast(x), v, samples)

    def _keys(self, exact: ExactSample) -> dict[str, str] | None:
        return corresponding(exact.state.decisions, self._single)

    def _data(self, run: FloatRun, i: int, state: State) -> Readings | None:
        """What sample i of the run left, in the state's arithmetic; None if it is not finite."""
        part = state.interpreter.part
        if not all(bool(part(run, name, i).isfinite().all()) for name in run.values):
            return None
        return state.interpreter.readings_of(run, i)


def _same_network(a: Capture, b: Capture) -> bool:
    """Whether two captures are the same operations with the same numbers in them."""
    if not a.is_like(b):
        return False
    mine, theirs = a.constants(), b.constants()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].double(), theirs[name].double()) for name in mine
    )
