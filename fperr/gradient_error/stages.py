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
from typing import Any

from torch import Tensor

from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.exact.engines.scaled import Scaled, scaled
from fperr.exact.engines.vectors import Vector, Vectors

STAGES = ("backward", "loss", "forward", "cast")


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
    A: Vectors[Any],
    computed: Vector | None,
    gradient: Vector,
    v: LogitGradients,
    data: TransposedJacobian[Any] | None,
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


def compared(A: Vectors[Any], computed: Vector | None, gradient: Vector) -> Split:
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


def product(v: Vector | None, transposed: TransposedJacobian[Any] | None) -> Vector | None:
    """J^T v; None where either is undefined."""
    return None if v is None or transposed is None else transposed.product(v)


def _difference(A: Vectors[Any], a: Vector | None, b: Vector | None) -> Vector | None:
    return None if a is None or b is None else A.sub(a, b)


def _optional(A: Vectors[Any], a: Vector | None) -> Scaled | None:
    return None if a is None else scaled(A, a)
