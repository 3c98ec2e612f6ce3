"""Where the error of a gradient arises: backward + loss + forward + cast, which sum exactly.

With J~ the exact product through what the format's own forward pass left for the backward one, v
the exact logit gradient, hats for what the format computed, and subscript c for the exact network
with weights and input rounded to the format:

    g_hat - g = (g_hat - J~^T v_hat)                 backward
              + J~^T (v_hat - v(z_hat))              loss
              + (J~^T v(z_hat) - J_c^T v(z_c))       forward
              + (J_c^T v(z_c) - g)                   cast
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fperr.measurement.maps import LinearMap
from fperr.measurement.vectors import Vector, Vectors

STAGES = ("backward", "loss", "forward", "cast")


@dataclass(frozen=True, slots=True)
class Scaled:
    """A vector `values * 2**exponent`: float64 accuracy, unlimited range.

    Attributes:
        values: float64, 1-D.
        exponent: an integer.
    """

    values: Tensor
    exponent: int

    @property
    def log2_norm(self) -> float:
        """log2 of the Euclidean norm; -inf for a zero vector."""
        norm = float(torch.linalg.vector_norm(self.values))
        return math.log2(norm) + self.exponent if norm else -math.inf

    def ratio(self, other: "Scaled", order: float = 2) -> float:
        """The norm of this over the norm of `other`, which is not zero; inf beyond float64."""
        mine, theirs = (float(torch.linalg.vector_norm(s.values, order)) for s in (self, other))
        try:
            return math.ldexp(mine / theirs, self.exponent - other.exponent)
        except OverflowError:
            return math.inf

    def cosine(self, other: "Scaled") -> float:
        """The cosine of the angle between the two, neither of them zero."""
        norms = torch.linalg.vector_norm(self.values) * torch.linalg.vector_norm(other.values)
        return float(self.values @ other.values / norms)


@dataclass(frozen=True, slots=True)
class LogitGradients:
    """Logit gradients, each (1, K) or None where it is undefined or not finite.

    Attributes:
        computed: v_hat, the format's own, any loss scale divided out.
        format: v(z_hat), exact at the format's logits.
        cast: v(z_c), exact at the logits of the cast network.
        exact: v(z).
    """

    computed: Vector | None
    format: Vector | None
    cast: Vector | None
    exact: Vector


@dataclass(frozen=True, slots=True)
class Split:
    """A gradient, its error and the stages of the error; None where undefined.

    Attributes:
        gradient: the exact g.
        computed: g_hat, loss scale divided out.
        stages: empty where they were not asked for.
        signs, computed_signs: of their components, however small: -1, 0 or 1.
    """

    gradient: Scaled
    computed: Scaled | None
    signs: Tensor
    computed_signs: Tensor | None
    error: Scaled | None
    stages: dict[str, Scaled | None]


def split(
    A: Vectors,
    computed: Vector | None,
    gradient: Vector,
    v: LogitGradients,
    data: LinearMap | None,
    cast_gradient: Vector | None,
) -> Split:
    """The error of a computed gradient, and its stages.

    Args:
        A: of the vectors.
        computed: g_hat (1, entries), any loss scale divided out; None if it is not finite.
        gradient: g (1, entries), exact.
        v: the logit gradients.
        data: J~^T, through what the format's run left; None where that is not finite.
        cast_gradient: J_c^T v(z_c), of the network with weights and input rounded to the format.
    """
    forward = product(v.format, data)
    backward = product(v.computed, data)
    vectors = {
        "backward": _difference(A, computed, backward),
        "loss": _difference(A, backward, forward),
        "forward": _difference(A, forward, cast_gradient),
        "cast": _difference(A, cast_gradient, gradient),
    }
    stages = {name: _optional(A, vector) for name, vector in vectors.items()}
    return replace(compared(A, computed, gradient), stages=stages)


def compared(A: Vectors, computed: Vector | None, gradient: Vector) -> Split:
    """The error of a computed gradient, without its stages."""
    return Split(
        scaled(A, gradient),
        _optional(A, computed),
        A.sign(gradient),
        None if computed is None else A.sign(computed),
        _optional(A, _difference(A, computed, gradient)),
        {},
    )


def shares(parts: Split) -> dict[str, float]:
    """<stage, error>/|error|^2 of each stage: signed, they sum to 1; NaN where undefined."""
    error = parts.error
    if error is None or not error.values.any():
        return dict.fromkeys(STAGES, math.nan)
    found = {}
    for name in STAGES:
        stage = parts.stages.get(name)
        if stage is None:
            found[name] = math.nan
        elif not stage.values.any():
            found[name] = 0.0
        else:
            found[name] = stage.ratio(error) * stage.cosine(error)
    return found


def product(v: Vector | None, transposed: LinearMap | None) -> Vector | None:
    """J^T v; None where either is undefined."""
    return None if v is None or transposed is None else transposed.product(v)


def _difference(A: Vectors, a: Vector | None, b: Vector | None) -> Vector | None:
    return None if a is None or b is None else A.sub(a, b)


def scaled(A: Vectors, a: Vector) -> Scaled:
    """An array of the arithmetic, flattened, as a vector in floating point with an exponent."""
    values, exponent = A.to_scaled(a)
    return Scaled(values.reshape(-1), exponent)


def _optional(A: Vectors, a: Vector | None) -> Scaled | None:
    return None if a is None else scaled(A, a)
