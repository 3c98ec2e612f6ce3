"""The exact side of one format: its cast network, what its runs left behind, and their routing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fperr.exact.branches import Branches, Flips, corresponding, flips, frozen_gradient
from fperr.exact.engines.base import ExactPoint
from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.exact.engines.samples_of_run import sample_of_saved
from fperr.exact.graph import Capture
from fperr.exact.interpreter import SavedValues
from fperr.exact.saved_values import FloatRun
from fperr.networks.exactly import ExactNetwork, ExactSample
from fperr.networks.in_format import FormatNetwork


@dataclass(frozen=True, slots=True)
class ExactSampleInFormat:
    """One sample, exactly, through the network with weights and input rounded to a format.

    Attributes:
        z: the K exact logits of the cast network; None where weights or input overflow the format.
        cast: its J^T, or None.
        data: J^T through what the format's own forward pass left; None where that is not finite.
        flips: how its decisions differ from the exact network's, by layer; None where unknown.
    """

    z: list[Any] | None
    cast: TransposedJacobian[Any] | None
    data: TransposedJacobian[Any] | None
    flips: list[Flips] | None


class ExactInFormat:
    """The exact side of one format.

    Args:
        reference: of the model's own dtype.
        network: the model in the format.
        x: the inputs, of which the first gives the shape.
    """

    def __init__(self, reference: ExactNetwork, network: FormatNetwork, x: Tensor) -> None:
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

    def samples(
        self, x: Tensor, run: FloatRun, exact: Sequence[ExactSample | None]
    ) -> Iterator[ExactSampleInFormat | None]:
        """The exact side of every sample of a batch x, of which `run` is the run, when asked for.

        None where the exact network itself is unknown.
        """
        for piece in self._engine.pieces(len(x)):
            places = range(*piece.indices(len(x)))
            known = {i: sample for i in places if (sample := exact[i]) is not None}
            states = self._states(x, known)
            data = {i: self._data(run, i, state) for i, state in states.items()}
            maps = self._maps(states, data)
            for i in places:
                sample = known.get(i)
                if sample is None:
                    yield None
                elif i not in states:
                    yield ExactSampleInFormat(None, None, None, None)
                else:
                    seen = self._flips(sample, data[i])
                    yield ExactSampleInFormat(states[i].z, states[i].map, maps.get(i), seen)

    def _states(
        self, x: Tensor, known: Mapping[int, ExactSample]
    ) -> dict[int, ExactPoint[Any, Any]]:
        """The cast network at the samples; those where weights or input overflow are missing."""
        found, others = {}, []
        for i, sample in known.items():
            cast = self.network.cast(x[i : i + 1])
            if not (self._weights_are_finite and bool(cast.isfinite().all())):
                continue
            if self._is_own and torch.equal(cast.double(), x[i : i + 1].double()):
                found[i] = sample.state
            else:
                others.append((i, cast))
        if others:
            states = self._engine.states(torch.cat([cast for _, cast in others]))
            pairs = zip(others, states, strict=True)
            found |= {i: state for (i, _), state in pairs if isinstance(state, ExactPoint)}
        return found

    def _maps(
        self, states: Mapping[int, ExactPoint[Any, Any]], data: Mapping[int, SavedValues | None]
    ) -> dict[int, TransposedJacobian[Any]]:
        """J^T through what the run left; that of the state where it left the same."""
        found: dict[int, TransposedJacobian[Any]] = {}
        other: dict[int, SavedValues] = {}
        for i, read in data.items():
            if read is None:
                continue
            if read.same_as(states[i].saved_values, states[i].interpreter.arithmetic):
                found[i] = states[i].map
            else:
                other[i] = read
        if other:
            own = [states[i] for i in other]
            found |= zip(other, self._engine.maps(own, list(other.values())), strict=True)
        return found

    def _flips(self, exact: ExactSample, data: SavedValues | None) -> list[Flips] | None:
        keys = corresponding(exact.state.decisions, self._single)
        return None if keys is None or data is None else flips(exact.state.decisions, data, keys)

    def frozen_gradient(
        self, x: Tensor, v: Tensor, routes: Sequence[tuple[Branches, ...] | None]
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

    def _data(self, run: FloatRun, i: int, state: ExactPoint[Any, Any]) -> SavedValues | None:
        """What sample i of the run left, in the state's arithmetic; None if it is not finite."""
        part = state.interpreter.part
        if not all(bool(part(run, name, i).isfinite().all()) for name in run.values):
            return None
        found: SavedValues = sample_of_saved(state.interpreter.saved_values_of(run, i), 0)
        return found


def _same_network(a: Capture, b: Capture) -> bool:
    """Whether two captures are the same operations with the same numbers in them."""
    if not a.is_like(b):
        return False
    mine, theirs = a.constants(), b.constants()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].double(), theirs[name].double()) for name in mine
    )
