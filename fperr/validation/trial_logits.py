"""Random logits to try a bound on: kinds of values, numbers of classes, temperatures."""

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
    """Logits with all else that the gradient of cross-entropy depends on.

    Attributes:
        z: Logits (batch, K), in the format.
        label: Classes that the loss uses, (batch,) int64.
        c: Scales (batch,) float64, numbers that the format holds; 1 for plain cross-entropy.
        targeted: Whether the loss is negated, (batch,) bool.
        upstream: Upstream gradient a, the same for all cases.
        is_shifted: Whether the largest logit is subtracted before scaling.
    """

    z: Tensor
    label: Tensor
    c: Tensor
    targeted: Tensor
    upstream: float
    is_shifted: bool

    def __len__(self) -> int:
        return len(self.z)

    def select(self, rows: Tensor) -> "TrialLogits":
        """The cases at the indices `rows`."""
        return replace(
            self,
            z=self.z[rows],
            label=self.label[rows],
            c=self.c[rows],
            targeted=self.targeted[rows],
        )

    def where(self, is_this: Tensor, other: "TrialLogits") -> "TrialLogits":
        """Combine cases: these where `is_this` (batch,) is true, those of `other` elsewhere."""
        return replace(
            self,
            z=torch.where(is_this[:, None], self.z, other.z),
            label=torch.where(is_this, self.label, other.label),
            c=torch.where(is_this, self.c, other.c),
        )


def _normal(count: int, K: int, g: Generator) -> Tensor:
    return _wide(count, -1, 1.5, g) * torch.randn(count, K, generator=g, dtype=torch.float64)


def _heavy(count: int, K: int, g: Generator) -> Tensor:
    normal = torch.randn(count, K, generator=g, dtype=torch.float64)
    return normal / torch.rand(count, K, generator=g, dtype=torch.float64).clamp_min(1e-3)


def _near_ties(count: int, K: int, g: Generator) -> Tensor:
    base = 5 * torch.randn(count, 1, generator=g, dtype=torch.float64)
    differences = _wide(count, -6, 0, g) * torch.randn(count, K, generator=g, dtype=torch.float64)
    exact = torch.rand(count, K, generator=g) < 0.3
    return base + torch.where(exact, 0.0, differences)


def _offset(count: int, K: int, g: Generator) -> Tensor:
    return _normal(count, K, g) + _wide(count, 0, 3.3, g)


def _wide(count: int, low: float, high: float, g: Generator) -> Tensor:
    """Draw (count, 1) numbers 10**e, with e uniform between `low` and `high`."""
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
    """Draw random cases: a third are plain cross-entropy, the others have T between 1e-2 and 1e2.

    Args:
        kind: Key of `KINDS`, or real logits (any, K) to draw from.
        count: Number of cases.
        K: Number of classes.
        fmt: Format of the logits.
        generator: Generator of the random numbers.
    """
    if isinstance(kind, Tensor):
        wide = kind[torch.randint(len(kind), (count,), generator=generator)].to(torch.float64)
    else:
        wide = KINDS[kind](count, K, generator)
    z = wide.clamp(-fmt.largest / 16, fmt.largest / 16).to(fmt.dtype)
    order = ranked(z)
    rank = torch.randint(3, (count,), generator=generator)  # the label: first, second, any
    anywhere = torch.randint(K, (count,), generator=generator)
    rank = torch.where(rank == 2, anywhere, rank)[:, None]
    T = _wide(count, -2, 2, generator)[:, 0]
    T = torch.where(torch.rand(count, generator=generator) < 1 / 3, 0.0, T)
    upstream = (1.0, 1.0, 2.0**10, 1 / 7)[int(torch.randint(4, (), generator=generator))]
    return TrialLogits(
        z,
        order.gather(1, rank)[:, 0],
        capped_scale(z, T, fmt),
        torch.rand(count, generator=generator) < 0.5,
        float(torch.tensor(upstream, dtype=fmt.dtype)),
        bool(torch.rand((), generator=generator) < 0.3),
    )


def with_absent_classes(cases: TrialLogits, generator: Generator) -> TrialLogits:
    """Make classes at random absent (-inf); the label and one more class stay present.

    Args:
        cases: Cases with two classes or more.
        generator: Generator of the random numbers.
    """
    count, K = cases.z.shape
    draws = torch.rand(count, K, generator=generator)
    # 2 is above every share, so that these two stay: the label, and the largest of the others
    draws.scatter_(1, cases.label[:, None], 2.0)
    draws.scatter_(1, draws.topk(2, dim=1).indices[:, 1:], 2.0)
    share = torch.rand(count, 1, generator=generator)
    return replace(cases, z=cases.z.masked_fill(draws < share, -math.inf))


def capped_scale(z: Tensor, T: Tensor, fmt: Format) -> Tensor:
    """The scale c = T/Delta in the format, capped as the losses cap it; 1 where T is 0."""
    scale = torch.minimum(T / margin(z), largest_scale(z, fmt, 2.0**10) / 4)
    c = torch.where(T == 0, 1.0, scale.nan_to_num(nan=1.0))
    return c.clamp_min(fmt.smallest_normal).to(fmt.dtype).to(torch.float64)
