"""What a format computed for one row of the report, and the exact vectors that judge it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fperr.bounds.cross_entropy import Bound
from fperr.exact.engines.gradient import GradientAtSample, LossAtSample
from fperr.exact.engines.scaled import Vector
from fperr.exact.engines.vectors import Vectors
from fperr.formats import Format
from fperr.gradient_error.stages import LogitGradients
from fperr.losses import Loss
from fperr.measurement.labels_by_scenario import LabelAssignment
from fperr.measurement.rounded_network import ExactSampleInFormat
from fperr.networks.in_format import FloatGradient


@dataclass(frozen=True, slots=True)
class FormatResult:
    """What a format computed for one sample, loss and assignment of labels.

    Attributes:
        sample: Index of the sample in x.
        i: Index of the sample in its batch.
        loss: The loss.
        format: The format.
        assignment: Labels of the batch.
        float_gradient: Gradients of the batch, as the format computed them.
        frozen: Gradients (batch, *shape) that the format computes with the exact network's
            branches. The format's own gradients where no branch differs; None where the branches
            of the two networks do not correspond.
        bound: Bound on the error of the batch's logit gradients, or None.
    """

    sample: int
    i: int
    loss: Loss
    format: Format
    assignment: LabelAssignment
    float_gradient: FloatGradient
    frozen: Tensor | None
    bound: Bound | None

    @property
    def label(self) -> int:
        """The class that the loss uses."""
        return int(self.assignment.label[self.i])

    @property
    def y(self) -> int | None:
        """The true label, or None where it is not known."""
        return None if self.assignment.y is None else int(self.assignment.y[self.i])

    @property
    def quantity_not_finite(self) -> str | None:
        """The first of (unmasked) logits, logit gradient and gradient that is not finite."""
        f, i = self.float_gradient, self.i
        logits = torch.where(f.logits.isneginf(), 0.0, f.logits)  # a class at -infinity is masked
        quantities = {"logits": logits, "logit gradient": f.logit_gradient, "gradient": f.gradient}
        broken = (name for name, batch in quantities.items() if not bool(batch[i].isfinite().all()))
        return next(broken, None)

    @property
    def is_finite(self) -> bool:
        """Whether logits, logit gradient and gradient of this sample are finite."""
        return self.quantity_not_finite is None

    @property
    def is_scale_degenerate(self) -> bool:
        """Whether the scale c is 0, infinite or NaN, so that the gradient cannot be judged."""
        c = float(self.float_gradient.scale.c[self.i])
        return not 0 < c < math.inf

    def loss_at_sample(self) -> LossAtSample | None:
        """The loss with the scale that the format computed; None where that scale is unusable."""
        if self.is_scale_degenerate:
            return None
        c = float(self.float_gradient.scale.c[self.i])
        return LossAtSample(
            self.loss.kind, self.label, c, self.assignment.targeted, self.y, tau=self.loss.tau
        )

    def unscaled(self, A: Vectors[Any], batch: Tensor) -> Vector:
        """This sample's row of `batch` (1, entries), with loss scale and averaging divided out."""
        loss_scale, count = self.float_gradient.factor
        flat: Vector = A.from_torch(batch[self.i].reshape(1, -1))
        flat = flat if loss_scale == 1.0 else A.div(flat, loss_scale)
        return flat if count == 1 else A.mul(flat, float(count))

    def unscaled_if_finite(self, A: Vectors[Any], batch: Tensor) -> Vector | None:
        """As `unscaled`; None if an entry is not finite."""
        return self.unscaled(A, batch) if bool(batch[self.i].isfinite().all()) else None


def logit_gradients(
    result: FormatResult,
    loss: LossAtSample,
    exact: GradientAtSample,
    cast: ExactSampleInFormat,
    A: Vectors[Any],
) -> LogitGradients:
    """The logit gradients that separate the stages, all with the same scale c.

    Args:
        result: What the format computed.
        loss: The loss at the sample.
        exact: Exact gradient of the loss.
        cast: The sample through the network with weights and input rounded to the format.
        A: Arithmetic of the vectors.
    """
    f, i = result.float_gradient, result.i

    def exact_v(z: list[object]) -> Vector | None:
        v = loss.logit_gradient(A.context, z)
        return None if v is None else A.array(v)

    finite_logits = bool((f.logits[i].isfinite() | f.logits[i].isneginf()).all())
    return LogitGradients(
        computed=result.unscaled_if_finite(A, f.logit_gradient) if finite_logits else None,
        format=exact_v([A.context.mpf(value) for value in f.logits[i].tolist()])
        if finite_logits
        else None,
        constants=None if cast.constants_z is None else exact_v(cast.constants_z),
        cast=None if cast.z is None else exact_v(cast.z),
        exact=exact.v,
    )
