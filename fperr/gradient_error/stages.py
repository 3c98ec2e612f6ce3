"""Split the error of a gradient into five stages, which sum to it exactly.

Notation: g is the exact gradient, v the exact logit gradient and z the exact logits; g_hat, v_hat
and z_hat are those that the format computed. J~ is the Jacobian through the values that the
format's forward pass saved for its backward pass, multiplied exactly. J_c and z_c belong to the
exact network with weights and input rounded (cast) to the format. J_k and z_k belong to the same
network, except that what depends on weights alone (a weight norm) is as the format computed it.

    g_hat - g = (g_hat - J~^T v_hat)                 backward
              + J~^T (v_hat - v(z_hat))              loss
              + (J~^T v(z_hat) - J_k^T v(z_k))       forward
              + (J_k^T v(z_k) - J_c^T v(z_c))        constants
              + (J_c^T v(z_c) - g)                   cast
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fperr.errors import UndecidedError
from fperr.exact.engines.jacobian import TransposedJacobian
from fperr.exact.engines.scaled import Scaled, Vector, scaled
from fperr.exact.engines.vectors import Vectors

STAGES = ("backward", "loss", "forward", "constants", "cast")


@dataclass(frozen=True, slots=True)
class LogitGradients:
    """Logit gradients of one loss, each (1, K), or None where it is undefined or not finite.

    Attributes:
        computed: v_hat, computed by the format, any loss scale divided out.
        format: v(z_hat), exact at the format's logits.
        constants: v(z_k), exact at the logits of the cast network with the format's own constants.
        cast: v(z_c), exact at the logits of the cast network.
        exact: v(z), exact at the exact logits.
    """

    computed: Vector | None
    format: Vector | None
    constants: Vector | None
    cast: Vector | None
    exact: Vector


@dataclass(frozen=True, slots=True)
class Split:
    """A gradient, its error and the stages of the error; None where they are undefined.

    Attributes:
        gradient: Exact gradient g.
        computed: Computed gradient g_hat, any loss scale divided out.
        signs, computed_signs: Signs -1, 0 or 1 of the components of g and g_hat, however small
            those are.
        error: Error g_hat - g.
        stages: Vectors[Any] by name of `STAGES`; empty if they were not computed.
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
    constants_gradient: Vector | None,
    cast_gradient: Vector | None,
) -> Split:
    """Split the error of a computed gradient into its stages.

    Args:
        A: Arithmetic of the vectors.
        computed: Gradient g_hat (1, entries), any loss scale divided out; None if it is not finite.
        gradient: Exact gradient g (1, entries).
        v: Logit gradients.
        data: J~^T; None where the values that the format's run saved are not finite.
        constants_gradient: J_k^T v(z_k), the exact gradient of the cast network with the format's
            own constants; `cast_gradient` itself where no constant is computed.
        cast_gradient: J_c^T v(z_c), the exact gradient of the cast network.
    """
    forward = product(v.format, data)
    backward = product(v.computed, data)
    vectors = {
        "backward": _difference(A, computed, backward),
        "loss": _difference(A, backward, forward),
        "forward": _difference(A, forward, constants_gradient),
        "constants": _difference(A, constants_gradient, cast_gradient),
        "cast": _difference(A, cast_gradient, gradient),
    }
    stages = {name: _optional(A, vector) for name, vector in vectors.items()}
    return replace(compared(A, computed, gradient), stages=stages)


def compared(A: Vectors[Any], computed: Vector | None, gradient: Vector) -> Split:
    """The error of a computed gradient, without its stages; arguments as for `split`."""
    return Split(
        scaled(A, gradient),
        _optional(A, computed),
        A.sign(gradient),
        None if computed is None else A.sign(computed),
        _optional(A, _difference(A, computed, gradient)),
        {},
    )


def shares(errors: Split) -> dict[str, float]:
    """The share of each stage in the error, <stage, error>/|error|^2.

    The shares are signed and sum to 1. They are NaN where a vector is undefined or the error is 0.
    """
    error = errors.error
    if error is None or not error.values.any():
        return dict.fromkeys(STAGES, math.nan)
    by_stage = {}
    for name in STAGES:
        stage = errors.stages.get(name)
        if stage is None:
            by_stage[name] = math.nan
        elif not stage.values.any():
            by_stage[name] = 0.0
        else:
            by_stage[name] = stage.ratio(error) * stage.cosine(error)
    return by_stage


def product(v: Vector | None, transposed: TransposedJacobian[Any] | None) -> Vector | None:
    """J^T v; None where v or J^T is undefined, or undecided."""
    if v is None or transposed is None:
        return None
    try:
        vector: Vector = transposed.product(v)
    except UndecidedError:
        return None
    return vector


def _difference(A: Vectors[Any], a: Vector | None, b: Vector | None) -> Vector | None:
    """a - b; None where either is None."""
    return None if a is None or b is None else A.sub(a, b)


def _optional(A: Vectors[Any], a: Vector | None) -> Scaled | None:
    """The vector in float64 with a common exponent; None for None."""
    return None if a is None else scaled(A, a)
