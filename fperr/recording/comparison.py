"""The attack's own gradients, and those of other losses in formats, beside exact ones."""

import math
from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor, nn

from fperr.emulated_kernels import emulated
from fperr.exact.engines.gradient import LossAtSample
from fperr.exact.loss_function import LossGradient
from fperr.exact.precision import RUNGS, bits_for_delta, bits_of
from fperr.formats import FLOAT64, Format, of_dtype
from fperr.gradient_error.metrics import NAMES
from fperr.losses import Context, Loss
from fperr.networks.checks import check_function_of_sample
from fperr.networks.exact_network import ExactNetwork, NoExactSample, SampleLadder
from fperr.networks.in_format import FloatGradient, FormatNetwork, device_and_dtype
from fperr.recording.attack_errors import AttackGradient, attack_errors
from fperr.recording.compared_rows import ComparedRows, Rerun
from fperr.recording.exact_errors import (
    Cells,
    bits_needed,
    exact_gradient,
    gradient_errors,
    gradient_state,
)
from fperr.recording.hooks import BackwardPass
from fperr.recording.loss_fit import RecognisedLoss
from fperr.recording.missing_delta import TRAINING
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
        "certainty": pa.string(),
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


class Comparison:
    """The comparison of gradients with exact ones, at the points of an attack.

    Args:
        model: Copy of the model without hooks, in evaluation mode.
        losses: Losses to compute at each point beside the attack's own gradient.
        formats: Formats in which to compute them.
        digits: Correct decimal digits of the exact gradients; None: those that each format needs.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Sequence[Loss],
        formats: Sequence[Format],
        digits: int | None,
    ) -> None:
        self._losses, self._formats, self._digits = losses, formats, digits
        self._dtype = device_and_dtype(model)[1]
        self._rerun = Rerun(model)
        self._model_network = FormatNetwork(model, of_dtype(self._dtype), autocast=False)
        self._networks = [FormatNetwork(model, f, autocast=False) for f in formats]
        self._reference: ExactNetwork | None = None
        self._is_checked = False
        self._last_forward = -1  # the number of the forward pass that `_exact` belongs to
        self._exact: list[SampleLadder | NoExactSample] = []
        self._user_losses: dict[tuple[int, int | None], LossGradient] = {}  # by label and target

    def check(self, x: Tensor) -> None:
        """Check that the model is a function of one sample, at a batch x (batch, *shape).

        Raises:
            ModelError, UnsupportedOperationError, CaptureAuditError: see `fperr.measure`.
        """
        check_function_of_sample(self._model_network, x.to(self._dtype))
        self._is_checked = True

    def rows(
        self, backward: BackwardPass, compared: ComparedRows, recognised: RecognisedLoss, y: Tensor
    ) -> pa.Table:
        """The rows of a backward pass: the attack's own gradients, and those of other losses.

        One row for the attack's own gradient of each sample and one for each loss and format, the
        latter once for each forward pass, however often it is differentiated. A model in training
        mode is another one than that of the exact gradients: nothing is compared then.

        Args:
            backward: Backward pass of the attack.
            compared: Rows of the batch to compare.
            recognised: Loss that the attack follows.
            y: (batch,) int64, the true labels.
        """
        if backward.forward.is_training:
            rows = [
                {**self._attack_cells(backward, compared, recognised, i), "reason": TRAINING}
                for i in range(len(compared.rows))
            ]
        else:
            with emulated(None):  # the attack may wait in the middle of a pass
                rows = self._compared(backward, compared, recognised, y)
        with_step = [{"step": backward.number, **cells} for cells in rows]
        columns = {name: [cells.get(name) for cells in with_step] for name in ERRORS.names}
        return pa.table(columns, schema=ERRORS)

    def points(self, backward: BackwardPass, compared: ComparedRows) -> pa.Table:
        """The points and the attack's gradients there, flattened, a row for each sample."""
        x = compared.x[compared.rows].flatten(1).double().tolist()
        g = backward.gradient
        return pa.table(
            {
                "step": [backward.number] * len(x),
                "sample": compared.samples,
                "x": x,
                "gradient": [None] * len(x)
                if g is None
                else g[compared.rows].flatten(1).double().tolist(),
            },
            schema=POINTS,
        )

    def _compared(
        self, backward: BackwardPass, compared: ComparedRows, recognised: RecognisedLoss, y: Tensor
    ) -> list[Cells]:
        x = compared.x[compared.rows].to(self._dtype)  # where that rounds, no delta is shown
        is_new = backward.forward.number != self._last_forward
        if is_new:
            if not self._is_checked:
                self.check(compared.x)
            needs = sorted({self._bits_for(f) for f in (backward.forward.format, *self._formats)})
            self._exact = self._reference_for(x, backward).samples(x, needs, lambda: None)
            self._last_forward = backward.forward.number
        rows = self._attack_rows(backward, compared, recognised, y)
        if is_new:
            for network in self._networks:
                for loss in self._losses:
                    rows += self._loss_rows(network, loss, x, compared, recognised, y)
        return rows

    def _reference_for(self, x: Tensor, backward: BackwardPass) -> ExactNetwork:
        """The exact network, made at the first call."""
        if self._reference is None:
            products = 1 + len(self._losses) * len(self._networks)
            by_rows = backward.forward.logits.shape[1] <= products
            bits = max(map(self._bits_for, (*self._formats, FLOAT64)))
            self._reference = ExactNetwork(self._model_network, x, RUNGS, bits, by_rows=by_rows)
        return self._reference

    def _bits_for(self, fmt: Format) -> int:
        """The bits of the exact gradient that a format's delta needs, or that were asked for."""
        if self._digits is None:
            return bits_for_delta(fmt.unit_roundoff)
        return bits_of(self._digits)

    def _attack_rows(
        self, backward: BackwardPass, compared: ComparedRows, recognised: RecognisedLoss, y: Tensor
    ) -> list[Cells]:
        """The rows of the attack's own gradients; see `attack_errors`."""
        are_equal, are_logits_equal = self._rerun.equality(compared, backward)
        rounded = compared.x.to(self._dtype).to(compared.x.dtype)
        are_held = (rounded == compared.x).flatten(1).all(1)
        context = Context(recognised.targeted, y)
        loss, z, gradient = recognised.loss, backward.forward.logits, backward.gradient
        c = None if loss is None else loss.scale(z, recognised.label, context).c
        rows = []
        for i, row in enumerate(compared.rows):
            cells = self._attack_cells(backward, compared, recognised, i)
            attack = AttackGradient(
                z[row],
                backward.logit_gradient[row],
                None if gradient is None else gradient[row],
                bool(are_held[row]),
                None if are_equal is None else are_equal[i],
                None if are_logits_equal is None else are_logits_equal[i],
            )
            cells["is_rerun_equal"] = attack.is_rerun_equal
            cells["is_logit_rerun_equal"] = attack.is_logit_rerun_equal
            at_sample = None
            if recognised.explains(row):
                if c is None:
                    at_sample = self._user_loss_at(recognised, row, y, backward)
                elif loss is not None:
                    cells["c"] = float(c[row]) if loss.has_scale else None
                    at_sample = self._loss_at(loss, recognised, row, float(c[row]), y)
            errors = attack_errors(
                self._bits_for(backward.forward.format),
                attack,
                self._exact[i],
                recognised,
                row,
                at_sample,
            )
            rows.append(cells | errors)
        return rows

    def _attack_cells(
        self, backward: BackwardPass, compared: ComparedRows, recognised: RecognisedLoss, i: int
    ) -> Cells:
        """The cells of the i-th compared row that are known before anything is compared."""
        row, z, gradient = compared.rows[i], backward.forward.logits, backward.gradient
        cells = _scenario_cells(z[row], recognised, int(recognised.label[row]), compared.samples[i])
        is_named = not recognised.has_exact_gradient or bool(recognised.explained[row])
        cells |= {"loss": recognised.name if is_named else "unknown", "is_own": True}
        cells |= {"format": backward.forward.format.name, "compared_with": "nothing"}
        return cells | gradient_state(None if gradient is None else gradient[row])

    def _user_loss_at(
        self, recognised: RecognisedLoss, row: int, y: Tensor, backward: BackwardPass
    ) -> LossAtSample | None:
        """The user's own loss at a row; None where its values depend on more than the logits."""
        assert recognised.user_loss is not None
        z = backward.forward.logits[row : row + 1]
        label, used = int(y[row]), int(recognised.label[row])
        key = label, used if recognised.targeted else None
        if key not in self._user_losses:
            function = recognised.user_loss.sample_loss(*key, z.device)
            self._user_losses[key] = LossGradient(function, z.shape[1], z.device)
        gradient = self._user_losses[key]
        if not gradient.is_function_at(z):
            return None
        return LossAtSample("function", used, 1.0, recognised.targeted, label, gradient)

    def _loss_rows(
        self,
        network: FormatNetwork,
        loss: Loss,
        x: Tensor,
        compared: ComparedRows,
        recognised: RecognisedLoss,
        y: Tensor,
    ) -> list[Cells]:
        """The rows of another loss in a format, summed over the compared rows as a batch.

        Where a format couples the samples of a batch, each is a batch.
        """
        label, labels_of_rows = recognised.label[compared.rows], y[compared.rows]
        size = 1 if network.couples_samples else len(x)
        rows, runs = [], list[tuple[FloatGradient, int]]()
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            context = Context(recognised.targeted, labels_of_rows[part])
            run = network.gradient(x[part], label[part], loss, context, mean=False)
            runs += [(run, i) for i in range(len(run.logits))]
        for i, row in enumerate(compared.rows):
            f, at = runs[i]
            cells = _scenario_cells(f.logits[at], recognised, int(label[i]), compared.samples[i])
            c, exact, gradient = float(f.scale.c[at]), self._exact[i], f.gradient[at]
            cells |= {"loss": loss.name, "format": network.format.name, "is_own": False}
            cells |= {"compared_with": "loss", "c": c if loss.has_scale else None}
            at_sample = self._loss_at(loss, recognised, row, c, y)
            bits, truth = self._bits_for(network.format), None
            if isinstance(exact, NoExactSample):
                cells["reason"] = exact.reason
            needed = bits_needed(bits, gradient, 1.0)
            if isinstance(exact, SampleLadder):
                truth = exact_gradient(exact, at_sample, bits, needed)
            cells |= gradient_state(gradient)
            rows.append(cells | gradient_errors(needed, gradient, 1.0, truth))
        return rows

    def _loss_at(
        self, loss: Loss, recognised: RecognisedLoss, row: int, c: float, y: Tensor
    ) -> LossAtSample | None:
        """The loss at a row with the scale c that was computed; None where c is unusable."""
        if not 0 < c < math.inf:
            return None
        label = int(recognised.label[row])
        return LossAtSample(loss.kind, label, c, recognised.targeted, int(y[row]), tau=loss.tau)


def _scenario_cells(z: Tensor, recognised: RecognisedLoss, label: int, sample: int) -> Cells:
    """The sample, and the scenario that its logits z (K,) show."""
    labels = torch.tensor([label], device=z.device)
    (scenario,) = classify(ranked(z[None]), labels, targeted=recognised.targeted)
    return {"sample": sample, "scenario": scenario.name}
