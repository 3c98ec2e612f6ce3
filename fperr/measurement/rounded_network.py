"""The exact vectors and branches that a format's run on a batch is compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fperr.exact.branches import Branches, Flips, corresponding, flips, frozen_gradient
from fperr.exact.engines.base import ExactEngine, ExactPoint
from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.exact.engines.samples_of_run import sample_of_saved
from fperr.exact.graph import Capture
from fperr.exact.interpreter import SavedValues
from fperr.exact.own_constants import same_numbers, with_own_constants
from fperr.exact.saved_values import FloatRun
from fperr.networks.exact_network import ExactNetwork, ExactSample
from fperr.networks.in_format import FormatNetwork


@dataclass(frozen=True, slots=True)
class ExactSampleInFormat:
    """The exact values of one sample in the network of a format.

    The cast network has weights and input rounded to the format, and computes exactly.

    Attributes:
        z: The K exact logits of the cast network; None where weights or input overflow the format.
        cast: J^T of the cast network, or None.
        constants_z: z of the cast network whose constants, which depend on weights alone, are
            those that the format computed; None where one of them overflows.
        constants: J^T of that network, or None.
        data: J^T through the values that the format's own forward pass saved; None where those are
            not finite, or where a row is undecided.
        flips: Differences between the branches of the format's run and the exact network's, by
            layer; None where they cannot be compared.
    """

    z: list[Any] | None
    cast: TransposedJacobian[Any] | None
    constants_z: list[Any] | None
    constants: TransposedJacobian[Any] | None
    data: TransposedJacobian[Any] | None
    flips: list[Flips] | None

    @property
    def has_exact_constants(self) -> bool:
        """Whether the format computes no constants that are not exact."""
        return self.constants is self.cast and self.constants_z is self.z


class ExactFormatNetwork:
    """The network of one format, evaluated exactly.

    Args:
        reference: Exact network of the model in its own dtype.
        network: The model in the format.
        x: Inputs, of which the first gives the shape.
    """

    def __init__(self, reference: ExactNetwork, network: FormatNetwork, x: Tensor) -> None:
        self.network = network
        self._single = network.capture(x[:1])
        constants = self._single.constants().values()
        self._weights_are_finite = all(bool(t.isfinite().all()) for t in constants)
        self._is_same_network = _same_network(self._single, reference.capture)
        self._ladder = (
            reference.ladder
            if self._is_same_network or not self._weights_are_finite
            else reference.ladder.of(self._single)
        )
        with network.running():
            own = with_own_constants(self._single) if self._weights_are_finite else None
        self._own_ladder = None
        if own is not None:
            self._own_ladder = self._ladder if own is self._single else self._ladder.of(own)

    def run(self, x: Tensor, v: Tensor) -> FloatRun:
        """The values that the format's forward pass on a batch saves for its backward pass.

        Raises:
            CaptureAuditError: see `FormatNetwork.saved`.
        """
        return self.network.saved(x, v)

    def samples(
        self, x: Tensor, run: FloatRun, exact: Mapping[int, ExactSample]
    ) -> dict[int, ExactSampleInFormat]:
        """The exact values of samples of a batch, by the engines of those samples, by index.

        Args:
            x: Batch (batch, *shape).
            run: Values that the format's forward pass on the batch saved.
            exact: The exact network at some of the samples, all on the same rung.
        """
        rung = next(iter(exact.values())).rung
        engine = self._ladder.engine(rung)
        cast = self._states(engine, x, exact)
        own = self._own_states(rung, x, cast)
        saved = {i: self._saved_values(run, i, state) for i, state in own.items()}
        maps = (
            {}
            if self._own_ladder is None
            else self._maps(self._own_ladder.engine(rung), own, saved)
        )
        samples: dict[int, ExactSampleInFormat] = {}
        for i, sample in exact.items():
            z, cast_map = (cast[i].z, cast[i].map) if i in cast else (None, None)
            own_z, own_map = (own[i].z, own[i].map) if i in own else (None, None)
            flips = self._flips(sample, saved.get(i))
            samples[i] = ExactSampleInFormat(z, cast_map, own_z, own_map, maps.get(i), flips)
        return samples

    def pieces(self, samples: int, rung: int) -> Iterator[slice]:
        """A batch in pieces that are computed together."""
        return self._ladder.engine(rung).pieces(samples)

    def _states(
        self, engine: ExactEngine[Any], x: Tensor, samples: Mapping[int, ExactSample]
    ) -> dict[int, ExactPoint[Any, Any]]:
        """The cast network at the samples, by index; without those that overflow the format."""
        states: dict[int, ExactPoint[Any, Any]] = {}
        to_compute: list[tuple[int, Tensor]] = []
        for i, sample in samples.items():
            cast = self.network.cast(x[i : i + 1])
            if not (self._weights_are_finite and bool(cast.isfinite().all())):
                continue
            # the format holds weights and input exactly: the cast network is the exact one
            if self._is_same_network and torch.equal(cast.double(), x[i : i + 1].double()):
                states[i] = sample.point
            else:
                to_compute.append((i, cast))
        return states | _points(engine, to_compute)

    def _own_states(
        self, rung: int, x: Tensor, cast: Mapping[int, ExactPoint[Any, Any]]
    ) -> dict[int, ExactPoint[Any, Any]]:
        """The cast network with the format's own constants at the samples, by index."""
        if self._own_ladder is None:
            return {}
        if self._own_ladder is self._ladder:
            return dict(cast)
        inputs = [(i, self.network.cast(x[i : i + 1])) for i in cast]
        return _points(self._own_ladder.engine(rung), inputs)

    def _maps(
        self,
        engine: ExactEngine[Any],
        states: Mapping[int, ExactPoint[Any, Any]],
        saved: Mapping[int, SavedValues[Any] | None],
    ) -> dict[int, TransposedJacobian[Any]]:
        """J^T through the values that the run saved, by index.

        Where the run saved the same values as the cast network, J^T is the cast network's.
        """
        maps: dict[int, TransposedJacobian[Any]] = {}
        to_compute: dict[int, SavedValues[Any]] = {}
        for i, values in saved.items():
            if values is None:
                continue
            if values.same_as(states[i].saved_values, states[i].interpreter.arithmetic):
                maps[i] = states[i].map
            else:
                to_compute[i] = values
        if to_compute:
            points = [states[i] for i in to_compute]
            computed = engine.maps(points, list(to_compute.values()))
            maps |= {i: m for i, m in zip(to_compute, computed, strict=True) if m is not None}
        return maps

    def _flips(self, exact: ExactSample, saved: SavedValues[Any] | None) -> list[Flips] | None:
        """How the branches of the run differ from the exact network's, by layer."""
        keys = corresponding(exact.point.decisions, self._single)
        return None if keys is None or saved is None else flips(exact.point.decisions, saved, keys)

    def frozen_gradient(
        self, x: Tensor, v: Tensor, branches: Sequence[tuple[Branches, ...] | None]
    ) -> Tensor | None:
        """The format's gradient on a batch, with every branch taken as in the exact network.

        Args:
            x: Batch (batch, *shape).
            v: Logit gradient (batch, K) of the format.
            branches: Branches of the exact network at each sample. A sample without any gets those
                of the first sample that has some; its gradient is not used.

        Returns:
            Gradient (batch, *shape), or None where the branches of the format's graph do not
            correspond to the exact network's.
        """
        stand_in = next(sample for sample in branches if sample is not None)
        samples = [stand_in if sample is None else sample for sample in branches]
        with self.network.running():
            return frozen_gradient(self.network.capture(x), self.network.cast(x), v, samples)

    def _saved_values(
        self, run: FloatRun, i: int, state: ExactPoint[Any, Any]
    ) -> SavedValues[Any] | None:
        """What sample i of the run saved, in the state's arithmetic; None if it is not finite."""
        value_of_sample = state.interpreter.part
        if not all(bool(value_of_sample(run, name, i).isfinite().all()) for name in run.values):
            return None
        # the interpreter returns a batch of one sample
        saved: SavedValues[Any] = sample_of_saved(state.interpreter.saved_values_of(run, i), 0)
        return saved


def _points(
    engine: ExactEngine[Any], inputs: Sequence[tuple[int, Tensor]]
) -> dict[int, ExactPoint[Any, Any]]:
    """The points at inputs (1, *shape), by index; without those that have none."""
    if not inputs:
        return {}
    computed = engine.states(torch.cat([x for _, x in inputs]))
    pairs = zip(inputs, computed, strict=True)
    return {i: point for (i, _), point in pairs if isinstance(point, ExactPoint)}


def _same_network(a: Capture, b: Capture) -> bool:
    """Whether two captures are the same operations with the same numbers in them."""
    if not a.is_like(b):
        return False
    data_a, data_b = a.data, b.data
    if data_a.keys() != data_b.keys():
        return False
    if not all(same_numbers(data_a[name], data_b[name]) for name in data_a):
        return False
    constants_a, constants_b = a.constants(), b.constants()
    return constants_a.keys() == constants_b.keys() and all(
        torch.equal(constants_a[name].double(), constants_b[name].double()) for name in constants_a
    )
