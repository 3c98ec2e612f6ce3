"""The gradient v = dL/dz of every loss in closed form, in mpmath: unlimited exponent range.

Written from the formulas of the losses, for one sample: `z` is a list of K numbers of `context`,
`label` is y or, if targeted, y_t. Ties take the lower index, as in a stable sort. A logit of minus
infinity is that of a masked class, which takes no part: its v is 0.
"""

from collections.abc import Sequence

from fperr.exact.number_types import N, Number, NumberContext


def cross_entropy(
    context: NumberContext[N], z: Sequence[N], label: int, c: N, *, targeted: bool = False
) -> list[N]:
    """The v of CE(c z, label), c constant: c (p - onehot), with -sum of the others as p_l - 1."""
    top = max(z)
    weights = [context.exp(c * (value - top)) for value in z]
    total = context.fsum(weights)
    v = [c * weight / total for weight in weights]
    v[label] = -context.fsum(v[i] for i in range(len(z)) if i != label)
    return _signed(v, targeted=targeted)


def stable_ce(
    context: NumberContext[N], z: Sequence[N], label: int, *, targeted: bool = False
) -> list[N]:
    """The v of logsumexp_{i != l} z_i - z_l: the softmax over the other classes, and -1."""
    top = max(z[i] for i in range(len(z)) if i != label)
    weights = [context.exp(value - top) for value in z]
    weights[label] = context.zero
    total = context.fsum(weights)
    v = [weight / total for weight in weights]
    v[label] = context.mpf(-1)
    return _signed(v, targeted=targeted)


def cw(context: NumberContext[N], z: Sequence[N], label: int, *, targeted: bool = False) -> list[N]:
    """The v of max_{i != l} z_i - z_l: 1 at the best other class, -1 at the label."""
    v = [context.zero] * len(z)
    v[_best_other(z, label)] = context.one
    v[label] = context.mpf(-1)
    return _signed(v, targeted=targeted)


def dlr(
    context: NumberContext[N],
    z: Sequence[N],
    label: int,
    *,
    targeted: bool = False,
    y: int | None = None,
) -> list[N] | None:
    """The v of DLR by the quotient rule; None where its denominator is 0, or classes are too few.

    Untargeted (max_{i != y} z_i - z_y)/(z_pi1 - z_pi3); targeted
    (z_yt - z_y)/(z_pi1 - (z_pi3 + z_pi4)/2).
    """
    order = _ranked(z)
    rise, fall = [context.zero] * len(z), [context.zero] * len(z)
    terms: list[tuple[int, N | int]]  # of the denominator: (class, weight)
    if targeted:
        assert y is not None
        rise[label] += 1
        rise[y] -= 1
        terms = [(order[0], 1), (order[2], -context.mpf(0.5)), (order[3], -context.mpf(0.5))]
    else:
        rise[_best_other(z, label)] += 1
        rise[label] -= 1
        terms = [(order[0], 1), (order[2], -1)]
    for index, weight in terms:
        fall[index] += weight
    used = [i for i in range(len(z)) if rise[i] != context.zero or fall[i] != context.zero]
    if any(context.isinf(z[i]) for i in used):  # fewer classes than it takes: the others are masked
        return None
    numerator, denominator = (
        context.fsum(weight[i] * z[i] for i in used) for weight in (rise, fall)
    )
    if denominator == context.zero:
        return None
    return [
        (up * denominator - numerator * down) / denominator**2
        for up, down in zip(rise, fall, strict=True)
    ]


def logit_gradient(
    kind: str,
    context: NumberContext[N],
    z: Sequence[N],
    label: int,
    *,
    c: N,
    targeted: bool = False,
    y: int | None = None,
) -> list[N] | None:
    """The v of the loss of that `kind`; None where it is undefined.

    Args:
        kind: `"cross_entropy"`, `"stable_ce"`, `"cw"` or `"dlr"`.
        context: an mpmath context.
        z: K logits.
        label: the class that the loss uses.
        c: the scale on the logits; of cross-entropy only.
        targeted: `label` is a target.
        y: the true label; of targeted DLR only.
    """
    if kind == "cross_entropy":
        return cross_entropy(context, z, label, c, targeted=targeted)
    if kind == "stable_ce":
        return stable_ce(context, z, label, targeted=targeted)
    if kind == "cw":
        return cw(context, z, label, targeted=targeted)
    if kind == "dlr":
        return dlr(context, z, label, targeted=targeted, y=y)
    raise ValueError(f"unknown kind of loss {kind!r}: expected cross_entropy, stable_ce, cw or dlr")


def _ranked(z: Sequence[Number]) -> list[int]:
    return sorted(range(len(z)), key=lambda i: -z[i])


def _best_other(z: Sequence[Number], label: int) -> int:
    return next(i for i in _ranked(z) if i != label)


def _signed(v: list[N], *, targeted: bool) -> list[N]:
    return [-value for value in v] if targeted else v
