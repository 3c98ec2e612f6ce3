"""The attack's own gradients, and what losses would give in formats, against exact ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor, nn

from fperr.formats import Format, of_dtype
from fperr.measurement.metrics import NAMES, error_metrics
from fperr.measurement.network import FloatGradient, FormatNetwork, device_and_dtype
from fperr.measurement.reference import ExactSample, LossAt, Reference
from fperr.measurement.stages import compared
from fperr.measurement.vectors import Vector
from fperr.recording.recognition import Recognised
from fperr.recording.taps import Gradient
from fperr.theory.losses import Context, Loss
from fperr.theory.scenarios import classify, ranked

ERRORS = pa.schema(
    {
        "step": pa.int32(),
        "sample": pa.int32(),
        "scenario": pa.string(),
        "loss": pa.string(),
        "format": pa.string(),
        "is_own": pa.bool_(),
        "compared_with": pa.string(),
        "c": pa.float64(),
        **dict.fromkeys(NAMES, pa.float64()),
        "is_finite": pa.bool_(),
        "is_dead": pa.bool_(),
        "is_rerun_equal": pa.bool_(),
        "log2_reference_error": pa.float64(),
        "is_certified": pa.bool_(),
    }
)
POINTS = pa.schema(
    {
        "step": pa.int32(),
        "sample": pa.int32(),
        "x": pa.list_(pa.float64()),
        "gradient": pa.list_(pa.float64()),
    }
)
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows of a forward pass that are looked at.

    Attributes:
        x: (batch, *shape), the whole batch: a rerun needs it.
        places: which of its rows.
        samples: whose they are.
    """

    x: Tensor
    places: list[int]
    samples: list[int]


class Comparison:
    """Exact gradients at the points of an attack.

    Args:
        model: a copy that nobody hooks, in evaluation mode.
        losses, formats: what else to compute at each point.
        digits: of the reference, in pairs of float64 (balls where those settle nothing).
    """

    def __init__(
        self, model: nn.Module, losses: Sequence[Loss], formats: Sequence[Format], digits: int
    ) -> None:
        self._model, self._losses, self._digits = model, losses, digits
        self._dtype = device_and_dtype(model)[1]
        self._networks = [FormatNetwork(model, f, autocast=False) for f in formats]
        self._reference: Reference | None = None
        self._pass = -1
        self._exact: list[ExactSample | None] = []

    def rows(self, event: Gradient, chosen: Chosen, known: Recognised, y: Tensor) -> pa.Table:
        """One row for the attack's own gradient of each sample and one for each loss and format.

        The latter once for each forward pass, however often it is differentiated.

        Args:
            event: a backward pass of the attack.
            chosen: which rows.
            known: its loss.
            y: (batch,), the true labels.
        """
        x = chosen.x[chosen.places].to(self._dtype)  # of a copy in a smaller format: exactly
        found: list[Row] = []
        is_new = event.of.number != self._pass
        if is_new:
            samples = self._reference_for(x, event).samples(x, lambda: None)
            self._exact = [s if isinstance(s, ExactSample) else None for s in samples]
            self._pass = event.of.number
        found += self._own(event, chosen, known, y)
        if is_new:
            for network in self._networks:
                for loss in self._losses:
                    found += self._others(network, loss, x, chosen, known, y)
        names = ERRORS.names
        listed = [{"step": event.number, **row} for row in found]
        return pa.table({n: [row.get(n) for row in listed] for n in names}, schema=ERRORS)

    def points(self, event: Gradient, chosen: Chosen) -> pa.Table:
        """The points and the attack's gradients there, flattened."""
        x = chosen.x[chosen.places].flatten(1).double().tolist()
        g = event.gradient
        return pa.table(
            {
                "step": [event.number] * len(x),
                "sample": chosen.samples,
                "x": x,
                "gradient": [None] * len(x)
                if g is None
                else g[chosen.places].flatten(1).double().tolist(),
            },
            schema=POINTS,
        )

    def _reference_for(self, x: Tensor, event: Gradient) -> Reference:
        if self._reference is None:
            own = FormatNetwork(self._model, of_dtype(self._dtype), autocast=False)
            products = 1 + len(self._losses) * len(self._networks)
            by_rows = event.of.logits.shape[1] <= products
            self._reference = Reference(own, x, self._digits, "multiword", by_rows=by_rows)
        return self._reference

    def _own(self, event: Gradient, chosen: Chosen, known: Recognised, y: Tensor) -> list[Row]:
        """The attack's gradients against those of the loss that was recognised.

        Where it does not explain a row, against J^T v with the attack's own v: what the network
        alone does to it.
        """
        z, v, g = event.of.logits, event.logit_gradient, event.gradient
        equal = self._rerun_equal(chosen, event)
        places = chosen.places
        context = Context(known.targeted, y)
        c = None if known.loss is None else known.loss.scale(z, known.label, context).c
        rows = []
        for i, place in enumerate(places):
            row = self._row(z[place], known, int(known.label[place]), chosen.samples[i])
            is_known = c is not None and bool(known.explained[place])
            row |= {"loss": known.name, "format": of_dtype(z.dtype).name, "is_own": True}
            if known.loss is not None and not is_known:
                row["loss"] = "unknown"
            row["compared_with"] = "loss" if is_known else "logit gradient"
            if is_known and known.reduction == "scaled":
                row["compared_with"] = "loss, factor fitted"
            row["is_rerun_equal"] = None if equal is None else equal[i]
            exact, mine = self._exact[i], None if g is None else g[place]
            if c is None or known.loss is None or not is_known:
                is_usable = exact is not None and bool(v[place].isfinite().all())
                found = exact.product(v[place]) if exact is not None and is_usable else None
            else:
                row["c"] = float(c[place]) if known.loss.has_scale else None
                asked = self._asked(known.loss, known, place, float(c[place]), y)
                found = None if exact is None else self._gradient(exact, asked)
            rows.append(row | self._metrics(mine, known.factor if is_known else 1.0, found))
        return rows

    def _others(
        self,
        network: FormatNetwork,
        loss: Loss,
        x: Tensor,
        chosen: Chosen,
        known: Recognised,
        y: Tensor,
    ) -> list[Row]:
        label, true = known.label[chosen.places], y[chosen.places]
        context = Context(known.targeted, true)
        f: FloatGradient = network.gradient(x, label, loss, context, mean=False)
        rows = []
        for i, place in enumerate(chosen.places):
            row = self._row(f.logits[i], known, int(label[i]), chosen.samples[i])
            c, exact = float(f.scale.c[i]), self._exact[i]
            row |= {"loss": loss.name, "format": network.format.name, "is_own": False}
            row |= {"compared_with": "loss", "c": c if loss.has_scale else None}
            asked = self._asked(loss, known, place, c, y)
            found = None if exact is None else self._gradient(exact, asked)
            rows.append(row | self._metrics(f.gradient[i], 1.0, found))
        return rows

    def _row(self, z: Tensor, known: Recognised, label: int, sample: int) -> Row:
        one = torch.tensor([label], device=z.device)
        (scenario,) = classify(ranked(z[None]), one, targeted=known.targeted)
        return {"sample": sample, "scenario": scenario.name}

    def _asked(
        self, loss: Loss, known: Recognised, place: int, c: float, y: Tensor
    ) -> LossAt | None:
        """The loss with the scale that was computed; None where that scale is unusable."""
        if not 0 < c < math.inf:
            return None
        assert self._reference is not None
        exact_c = self._reference.vectors.context.mpf(c)
        label = int(known.label[place])
        return LossAt(loss.kind, label, exact_c, known.targeted, int(y[place]))

    def _gradient(self, exact: ExactSample, asked: LossAt | None) -> tuple[Vector, float] | None:
        found = None if asked is None else exact.gradient(asked)
        return None if found is None else (found.gradient, found.log2_error)

    def _metrics(
        self, computed: Tensor | None, factor: float, exact: tuple[Vector, float] | None
    ) -> Row:
        """The errors of a gradient whose loss was multiplied by `factor`."""
        row: Row = {"is_certified": False}
        if computed is not None:
            row["is_finite"] = bool(computed.isfinite().all())
            row["is_dead"] = not bool(computed.any())
        if exact is None:
            return row
        assert self._reference is not None
        A, (gradient, log2_error) = self._reference.vectors, exact
        row["log2_reference_error"] = log2_error
        row["is_certified"] = log2_error <= -self._digits * math.log2(10)
        if computed is None or not row["is_certified"] or not row["is_finite"]:
            return row
        mine = A.from_torch(computed.reshape(1, -1))
        if factor != 1.0:
            # 1/batch may not be a number of the format: its inverse is one
            inverse = round(1 / factor)
            whole = abs(1 / factor - inverse) < 1e-9 * abs(inverse)
            mine = A.mul(mine, float(inverse)) if whole else A.div(mine, factor)
        return row | error_metrics(compared(A, mine, gradient))

    def _rerun_equal(self, chosen: Chosen, event: Gradient) -> list[bool] | None:
        """Whether the network alone turns v into the attack's gradient, bit by bit.

        Where not, the attack's objective has terms beside the network, or its kernels vary.
        """
        g, z = event.gradient, event.of.logits
        if g is None or {chosen.x.dtype, z.dtype} != {self._dtype}:
            return None
        with torch.enable_grad():
            leaf = chosen.x.clone().requires_grad_()
            again = self._model(leaf)
            (found,) = torch.autograd.grad(again, leaf, event.logit_gradient)
        return [torch.equal(found[i], g[i]) for i in chosen.places]
