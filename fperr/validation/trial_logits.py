"""Logits to try a bound on: five kinds, any number of classes, temperatures over four decades."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from fperr.formats import Format
from fperr.theory.scaling import largest_scale, margin
from fperr.theory.scenarios import ranked


@dataclass(frozen=True, slots=True)
class TrialLogits:
    """Logits with all that the gradient of cross-entropy depends on.

    Attributes:
        z: (batch, K), in the format.
        label: (batch,) int64.
        c: (batch,) float64, numbers that the format holds; 1 for plain cross-entropy.
        targeted: (batch,) bool: the loss is negated.
        upstream: a, one for all.
        is_shifted: the largest logit is subtracted before scaling.
    """

    z: Tensor
    label: Tensor
    c: Tensor
    targeted: Tensor
    upstream: float
    is_shifted: bool

    def __len__(self) -> int:
        return len(self.z)

    def of(self, places: Tensor) -> "TrialLogits":
        """Some of these cases."""
        return replace(
            self,
            z=self.z[places],
            label=self.label[places],
            c=self.c[places],
            targeted=self.targeted[places],
        )

    def where(self, chosen: Tensor, other: "TrialLogits") -> "TrialLogits":
        """These cases where `chosen` (batch,), those of `other` elsewhere."""
        return replace(
            self,
            z=torch.where(chosen[:, None], self.z, other.z),
            label=torch.where(chosen, self.label, other.label),
            c=torch.where(chosen, self.c, other.c),
        )


def _normal(count: int, K: int, g: Generator) -> Tensor:
    return _wide(count, -1, 1.5, g) * torch.randn(count, K, generator=g, dtype=torch.float64)


def _heavy(count: int, K: int, g: Generator) -> Tensor:
    normal = torch.randn(count, K, generator=g, dtype=torch.float64)
    return normal / torch.rand(count, K, generator=g, dtype=torch.float64).clamp_min(1e-3)


def _near_ties(count: int, K: int, g: Generator) -> Tensor:
    base = 5 * torch.randn(count, 1, generator=g, dtype=torch.float64)
    apart = _wide(count, -6, 0, g) * torch.randn(count, K, generator=g, dtype=torch.float64)
    exact = torch.rand(count, K, generator=g) < 0.3
    return base + torch.where(exact, 0.0, apart)


def _offset(count: int, K: int, g: Generator) -> Tensor:
    return _normal(count, K, g) + _wide(count, 0, 3.3, g)


def _wide(count: int, low: float, high: float, g: Generator) -> Tensor:
    """(count, 1): 10 to a power that is uniform between two."""
    uniform = torch.rand(count, 1, generator=g, dtype=torch.float64)
    return torch.pow(10.0, low + (high - low) * uniform)


KINDS: dict[str, Callable[[int, int, Generator], Tensor]] = {
    "normal": _normal,
    "heavy-tailed": _heavy,
    "near ties": _near_ties,
    "common offset": _offset,
}


def draw(
    kind: str | Tensor,
    count: int,
    K: int,
    fmt: Format,
    generator: Generator,
) -> TrialLogits:
    """Random cases: a third plain cross-entropy, the others with T between 1e-2 and 1e2.

    Args:
        kind: one of `KINDS`, or real logits (any, K) to choose from.
        count: how many.
        K: classes.
        fmt: of the logits.
        generator: of the random numbers.
    """
    if isinstance(kind, Tensor):
        wide = kind[torch.randint(len(kind), (count,), generator=generator)].to(torch.float64)
    else:
        wide = KINDS[kind](count, K, generator)
    z = wide.clamp(-fmt.largest / 16, fmt.largest / 16).to(fmt.dtype)
    order = ranked(z)
    place = torch.randint(3, (count,), generator=generator)  # first, second, any
    anywhere = torch.randint(K, (count,), generator=generator)
    place = torch.where(place == 2, anywhere, place)[:, None]
    T = _wide(count, -2, 2, generator)[:, 0]
    T = torch.where(torch.rand(count, generator=generator) < 1 / 3, 0.0, T)
    upstream = (1.0, 1.0, 2.0**10, 1 / 7)[int(torch.randint(4, (), generator=generator))]
    return TrialLogits(
        z,
        order.gather(1, place)[:, 0],
        scaled(z, T, fmt),
        torch.rand(count, generator=generator) < 0.5,
        float(torch.tensor(upstream, dtype=fmt.dtype)),
        bool(torch.rand((), generator=generator) < 0.3),
    )


def masked(cases: TrialLogits, generator: Generator) -> TrialLogits:
    """The cases with classes at random absent (-inf), but the label and one more.

    Args:
        cases: of at least two classes.
        generator: of the random numbers.
    """
    count, K = cases.z.shape
    draws = torch.rand(count, K, generator=generator)
    draws.scatter_(1, cases.label[:, None], 2.0)
    draws.scatter_(1, draws.topk(2, dim=1).indices[:, 1:], 2.0)
    share = torch.rand(count, 1, generator=generator)
    return replace(cases, z=cases.z.masked_fill(draws < share, -math.inf))


def scaled(z: Tensor, T: Tensor, fmt: Format) -> Tensor:
    """c = T/Delta in the format, capped as the losses cap it; 1 where T is 0."""
    wanted = torch.minimum(T / margin(z), largest_scale(z, fmt, 2.0**10) / 4)
    c = torch.where(T == 0, 1.0, wanted.nan_to_num(nan=1.0))
    return c.clamp_min(fmt.smallest_normal).to(fmt.dtype).to(torch.float64)
