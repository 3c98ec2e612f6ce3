"""The attack's own gradients, and what losses would give in formats, against exact ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from fperr.exact.engines.vectors import Vectors
from fperr.exact.loss_function import LossGradient
from fperr.formats import Format, of_dtype
from fperr.gradient_error.metrics import NAMES
from fperr.losses.registry import Context, Loss
from fperr.networks.checks import check_function_of_sample
from fperr.networks.exactly import ExactNetwork, ExactSample, LossAtSample, NoExactSample
from fperr.networks.in_format import FloatGradient, FormatNetwork, copied, device_and_dtype
from fperr.recording.exact_errors import (
    Row,
    errors_of,
    exact_gradient,
    logit_gradient_delta,
    state_of,
)
from fperr.recording.hooks import BackwardPass
from fperr.recording.reasons import (
    LOGIT_GRADIENT_NOT_FINITE,
    NO_EXACT_LOSS,
    NO_RERUN,
    NOT_COMPARABLE,
    NOT_THE_NETWORK,
    OTHER_LOGITS,
    OTHER_POINT,
    TOGETHER,
    TRAINING,
    UNKNOWN_LOSS,
)
from fperr.recording.recognition import Recognised
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
        "network_delta": pa.float64(),
        "relative_difference": pa.float64(),
        "logit_gradient_delta": pa.float64(),
        "reason": pa.string(),
        "is_finite": pa.bool_(),
        "is_dead": pa.bool_(),
        "is_rerun_equal": pa.bool_(),
        "is_logit_rerun_equal": pa.bool_(),
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
LOGIT = "logit"
_COMPARED = {"scaled": "loss, factor fitted", "by sample": "loss, factor fitted by sample"}


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
        self._copies: dict[torch.dtype, nn.Module] = {}
        self._own_network = FormatNetwork(model, of_dtype(self._dtype), autocast=False)
        self._networks = [FormatNetwork(model, f, autocast=False) for f in formats]
        self._reference: ExactNetwork | None = None
        self._is_checked = False
        self._pass = -1
        self._exact: list[ExactSample | NoExactSample] = []
        self._given: dict[tuple[int, int | None], LossGradient] = {}

    def check(self, x: Tensor) -> None:
        """Check that the model is a function of one sample, at a batch x (batch, *shape).

        Raises:
            ModelError, UnsupportedOperationError, CaptureAuditError: see `fperr.measure`.
        """
        check_function_of_sample(self._own_network, x.to(self._dtype))
        self._is_checked = True

    def rows(self, event: BackwardPass, chosen: Chosen, known: Recognised, y: Tensor) -> pa.Table:
        """One row for the attack's own gradient of each sample and one for each loss and format.

        The latter once for each forward pass, however often it is differentiated. A model in
        training mode is another one than that of the exact gradients: nothing is compared then.

        Args:
            event: a backward pass of the attack.
            chosen: which rows.
            known: its loss.
            y: (batch,), the true labels.
        """
        found: list[Row] = []
        if event.of.is_training:
            rows = [self._own_row(event, chosen, known, i) for i in range(len(chosen.places))]
            found = [{**row, "reason": TRAINING} for row in rows]
        else:
            found = self._compared(event, chosen, known, y)
        names = ERRORS.names
        listed = [{"step": event.number, **row} for row in found]
        return pa.table({n: [row.get(n) for row in listed] for n in names}, schema=ERRORS)

    def _compared(
        self, event: BackwardPass, chosen: Chosen, known: Recognised, y: Tensor
    ) -> list[Row]:
        x = chosen.x[chosen.places].to(self._dtype)  # where that rounds, no delta is shown
        is_new = event.of.number != self._pass
        if is_new:
            if not self._is_checked:
                self.check(chosen.x)
            self._exact = self._reference_for(x, event).samples(x, lambda: None)
            self._pass = event.of.number
        found = self._own(event, chosen, known, y)
        if is_new:
            for network in self._networks:
                for loss in self._losses:
                    found += self._others(network, loss, x, chosen, known, y)
        return found

    def points(self, event: BackwardPass, chosen: Chosen) -> pa.Table:
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

    def _reference_for(self, x: Tensor, event: BackwardPass) -> ExactNetwork:
        if self._reference is None:
            products = 1 + len(self._losses) * len(self._networks)
            by_rows = event.of.logits.shape[1] <= products
            self._reference = ExactNetwork(
                self._own_network, x, self._digits, "double_word", by_rows=by_rows
            )
        return self._reference

    @property
    def _vectors(self) -> Vectors[Any]:
        assert self._reference is not None
        return self._reference.vectors

    def _own(self, event: BackwardPass, chosen: Chosen, known: Recognised, y: Tensor) -> list[Row]:
        """The attack's gradients against those of the loss that was recognised.

        Where it does not explain a row, against J^T v with the attack's own v: what the network
        alone does to it.
        """
        is_equal, are_logits_equal = self._rerun_equal(chosen, event)
        rounded = chosen.x.to(self._dtype).to(chosen.x.dtype)
        are_held = (rounded == chosen.x).flatten(1).all(1)
        context = Context(known.targeted, y)
        loss, z = known.loss, event.of.logits
        c = None if loss is None else loss.scale(z, known.label, context).c
        rows = []
        for i, place in enumerate(chosen.places):
            row = self._own_row(event, chosen, known, i)
            row["is_rerun_equal"] = None if is_equal is None else is_equal[i]
            row["is_logit_rerun_equal"] = None if are_logits_equal is None else are_logits_equal[i]
            asked = None
            if _is_explained(known, place):
                if c is None:
                    asked = self._of_function(known, place, y, event)
                elif loss is not None:
                    row["c"] = float(c[place]) if loss.has_scale else None
                    asked = self._asked(loss, known, place, float(c[place]), y)
            is_held = bool(are_held[place])
            errors = self._own_errors(event, place, i, known, asked, row, is_held=is_held)
            rows.append(row | errors)
        return rows

    def _own_row(self, event: BackwardPass, chosen: Chosen, known: Recognised, i: int) -> Row:
        """What a row says before anything is compared."""
        place, z = chosen.places[i], event.of.logits
        row = self._row(z[place], known, int(known.label[place]), chosen.samples[i])
        is_named = not known.is_known or bool(known.explained[place])
        row |= {"loss": known.name if is_named else "unknown", "is_own": True}
        row |= {"format": of_dtype(z.dtype).name, "compared_with": "nothing"}
        return row | state_of(None if event.gradient is None else event.gradient[place])

    def _own_errors(
        self,
        event: BackwardPass,
        place: int,
        i: int,
        known: Recognised,
        asked: LossAtSample | None,
        row: Row,
        *,
        is_held: bool,
    ) -> Row:
        """The errors of one of the attack's gradients, under the names that they deserve."""
        A, exact = self._vectors, self._exact[i]
        v, g = event.logit_gradient[place], event.gradient
        if row["is_logit_rerun_equal"] is False:
            return {"reason": OTHER_LOGITS}
        if isinstance(exact, NoExactSample):
            return {"reason": exact.reason}
        if not bool(v.isfinite().all()):
            return {"reason": LOGIT_GRADIENT_NOT_FINITE}
        is_explained = _is_explained(known, place)
        factor = float(known.factor[place]) if is_explained else 1.0
        found: Row = {}
        # the gradient of a single logit is a constant: dL/dz as data has no error of its own
        if is_explained or known.name == LOGIT:
            found["compared_with"] = _COMPARED.get(known.reduction, "loss")
        else:
            found["compared_with"] = "logit gradient"
        if is_explained:
            target = None if asked is None else exact_gradient(exact, asked)
            found["logit_gradient_delta"] = logit_gradient_delta(
                A, self._digits, event.of.logits[place], v, factor, asked
            )
        else:
            target = exact.product(v)
        if target is None:
            return found | {"reason": NO_EXACT_LOSS}
        computed = None if g is None else g[place]
        errors = errors_of(A, self._digits, computed, factor, target)
        numbers = {name: errors.pop(name) for name in NAMES if name in errors}
        found |= errors
        if g is None:
            found["reason"] = TOGETHER
        elif not numbers:
            found["reason"] = NOT_COMPARABLE
        elif not is_held:
            found |= {"relative_difference": numbers["delta"], "reason": OTHER_POINT}
        elif row["is_rerun_equal"] is None:
            found |= {"relative_difference": numbers["delta"], "reason": NO_RERUN}
        elif row["is_rerun_equal"] is False:
            found |= {"relative_difference": numbers["delta"], "reason": NOT_THE_NETWORK}
        elif found["compared_with"] == "logit gradient":
            found |= {"network_delta": numbers["delta"], "reason": UNKNOWN_LOSS}
        else:
            found |= numbers
        return found

    def _of_function(
        self, known: Recognised, place: int, y: Tensor, event: BackwardPass
    ) -> LossAtSample | None:
        """The user's own loss at a sample; None where its values depend on more than the logits."""
        assert known.given is not None
        z = event.of.logits[place : place + 1]
        label = int(y[place])
        target = int(known.label[place]) if known.targeted else None
        key = label, target
        if key not in self._given:
            function = known.given.of_sample(label, target, z.device)
            self._given[key] = LossGradient(function, z.shape[1], z.device)
        if not self._given[key].is_function_at(z):
            return None
        one = self._vectors.context.one
        return LossAtSample(
            "function", int(known.label[place]), one, known.targeted, label, self._given[key]
        )

    def _others(
        self,
        network: FormatNetwork,
        loss: Loss,
        x: Tensor,
        chosen: Chosen,
        known: Recognised,
        y: Tensor,
    ) -> list[Row]:
        A, label, true = self._vectors, known.label[chosen.places], y[chosen.places]
        context = Context(known.targeted, true)
        f: FloatGradient = network.gradient(x, label, loss, context, mean=False)
        rows = []
        for i, place in enumerate(chosen.places):
            row = self._row(f.logits[i], known, int(label[i]), chosen.samples[i])
            c, exact = float(f.scale.c[i]), self._exact[i]
            row |= {"loss": loss.name, "format": network.format.name, "is_own": False}
            row |= {"compared_with": "loss", "c": c if loss.has_scale else None}
            asked = self._asked(loss, known, place, c, y)
            found = exact_gradient(exact, asked) if isinstance(exact, ExactSample) else None
            if isinstance(exact, NoExactSample):
                row["reason"] = exact.reason
            row |= state_of(f.gradient[i])
            rows.append(row | errors_of(A, self._digits, f.gradient[i], 1.0, found))
        return rows

    def _row(self, z: Tensor, known: Recognised, label: int, sample: int) -> Row:
        one = torch.tensor([label], device=z.device)
        (scenario,) = classify(ranked(z[None]), one, targeted=known.targeted)
        return {"sample": sample, "scenario": scenario.name}

    def _asked(
        self, loss: Loss, known: Recognised, place: int, c: float, y: Tensor
    ) -> LossAtSample | None:
        """The loss with the scale that was computed; None where that scale is unusable."""
        if not 0 < c < math.inf:
            return None
        exact_c = self._vectors.context.mpf(c)
        label = int(known.label[place])
        return LossAtSample(loss.kind, label, exact_c, known.targeted, int(y[place]))

    def _rerun_equal(
        self, chosen: Chosen, event: BackwardPass
    ) -> tuple[list[bool] | None, list[bool] | None]:
        """Whether the network alone gives the attack's gradient, and its logits, bit by bit.

        Where the gradient differs and the logits do not, the attack's objective has terms beside
        the network, or its kernels vary; where the logits differ, the model is another one. The
        network runs as in the attack: in the dtype of its input, under its autocast.
        """
        g, z, autocast = event.gradient, event.of.logits, event.of.autocast
        model = self._in_dtype(self._dtype if autocast is not None else chosen.x.dtype)
        device = chosen.x.device.type
        # without the cache, whose casts of weights would be one gradient's and another's
        mode = torch.autocast(
            device, dtype=autocast, enabled=autocast is not None, cache_enabled=False
        )
        try:
            with torch.enable_grad():
                leaf = chosen.x.clone().requires_grad_()
                with mode:
                    again = model(leaf)
                if again.dtype != z.dtype:
                    return None, None
                (found,) = torch.autograd.grad(again, leaf, event.logit_gradient)
        except RuntimeError:  # no such operation in that dtype, or no such cast
            return None, None
        alike = (again == z) | (again.isnan() & z.isnan())
        are_logits_equal = alike.all(1)[chosen.places].tolist()
        if g is None:
            return None, are_logits_equal
        return [torch.equal(found[i], g[i]) for i in chosen.places], are_logits_equal

    def _in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """The model, or a copy of it in another dtype: an attack may run one."""
        if dtype == self._dtype:
            return self._model
        if dtype not in self._copies:
            self._copies[dtype] = copied(self._model).to(dtype)
        return self._copies[dtype]


def _is_explained(known: Recognised, place: int) -> bool:
    """The row's loss is known, and its exact gradient can be computed."""
    return known.is_known and bool(known.explained[place])
