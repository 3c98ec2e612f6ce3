"""The gradient v = dL/dz of each loss with respect to the logits, in closed form.

The formulas are those of the losses, for one sample and any numbers with unlimited exponents:
`z` holds K numbers of `context`, and `label` is y or, if targeted, y_t. In a tie the class with the
lower index counts as larger, as in a stable sort. A logit of minus infinity is that of a masked
class: its v is 0.
"""

from collections.abc import Sequence

from fperr.exact.number_types import N, Number, NumberContext


def cross_entropy(
    context: NumberContext[N], z: Sequence[N], label: int, c: N, *, targeted: bool = False
) -> list[N]:
    """Compute v of CE(c z, label) for constant c: c (p - onehot).

    The entry of the label, c (p_l - 1), is minus the sum of the other entries: no cancellation.
    """
    top = max(z)
    weights = [context.exp(c * (value - top)) for value in z]
    total = context.fsum(weights)
    v = [c * weight / total for weight in weights]
    v[label] = -context.fsum(v[i] for i in range(len(z)) if i != label)
    return _signed(v, targeted=targeted)


def stable_ce(
    context: NumberContext[N], z: Sequence[N], label: int, *, targeted: bool = False
) -> list[N]:
    """Compute v of logsumexp_{i != l} z_i - z_l: the softmax over the other classes, and -1."""
    top = max(z[i] for i in range(len(z)) if i != label)
    weights = [context.exp(value - top) for value in z]
    weights[label] = context.zero
    total = context.fsum(weights)
    v = [weight / total for weight in weights]
    v[label] = context.mpf(-1)
    return _signed(v, targeted=targeted)


def comp_sum(
    context: NumberContext[N], z: Sequence[N], label: int, tau: float, *, targeted: bool = False
) -> list[N]:
    """Compute v of (p_l^(tau - 1) - 1)/(1 - tau): P p_l^(tau - 1) (q, -1), P = 1 - p_l.

    q is the softmax over the other classes; tau = 1 is -log p_l.
    """
    top = max(z)
    weights = [context.exp(value - top) for value in z]
    of_others = context.fsum(weights[i] for i in range(len(z)) if i != label)
    total = of_others + weights[label]
    # p_l^(tau - 1); log p_l is that of a quotient whose numerator may be far below any other
    power = context.exp(context.mpf(tau - 1) * (z[label] - top - context.log(total)))
    v = [power * weight / total for weight in weights]
    v[label] = -(power * of_others / total)
    return _signed(v, targeted=targeted)


def cw(context: NumberContext[N], z: Sequence[N], label: int, *, targeted: bool = False) -> list[N]:
    """Compute v of max_{i != l} z_i - z_l: 1 at the largest other class, -1 at the label."""
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
    """Compute v of DLR by the quotient rule.

    Untargeted, DLR is (max_{i != y} z_i - z_y)/(z_pi1 - z_pi3); targeted, it is
    (z_yt - z_y)/(z_pi1 - (z_pi3 + z_pi4)/2). None where the denominator is 0 or where fewer classes
    than it uses are not masked.
    """
    order = _ranked(z)
    # weights of the logits in the numerator (`rise`) and in the denominator (`fall`)
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
    if any(context.isinf(z[i]) for i in used):  # a masked class is among those used
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
    tau: float = 1.0,
) -> list[N] | None:
    """Compute v of the loss of that `kind`; None where it is undefined.

    Args:
        kind: Kind of loss: `"cross_entropy"`, `"stable_ce"`, `"comp_sum"`, `"cw"` or `"dlr"`.
        context: Functions on the numbers, at their precision: an mpmath context, or balls.
        z: Logits, K numbers.
        label: Class that the loss uses.
        c: Scale on the logits, for cross-entropy only.
        targeted: Whether `label` is a target.
        y: True label, for targeted DLR only.
        tau: Member of the comp-sum family, for that only.
    """
    if kind == "comp_sum":
        return comp_sum(context, z, label, tau, targeted=targeted)
    if kind == "cross_entropy":
        return cross_entropy(context, z, label, c, targeted=targeted)
    if kind == "stable_ce":
        return stable_ce(context, z, label, targeted=targeted)
    if kind == "cw":
        return cw(context, z, label, targeted=targeted)
    if kind == "dlr":
        return dlr(context, z, label, targeted=targeted, y=y)
    raise ValueError(
        f"unknown kind of loss {kind!r}: expected cross_entropy, stable_ce, comp_sum, cw or dlr"
    )


def _ranked(z: Sequence[Number]) -> list[int]:
    """The classes by falling logit."""
    return sorted(range(len(z)), key=lambda i: -z[i])


def _best_other(z: Sequence[Number], label: int) -> int:
    return next(i for i in _ranked(z) if i != label)


def _signed(v: list[N], *, targeted: bool) -> list[N]:
    return [-value for value in v] if targeted else v
