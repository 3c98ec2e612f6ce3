"""Where an attack may go: a ball around the input, within a box, exactly, in the input's format."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fperr.vocabulary import Norm

_INSIDE = 1 - 2.0**-40  # float64's rounding of a norm of up to 2^24 numbers is less


@dataclass(frozen=True, slots=True)
class Region:
    """The points within `radius` of `centre` and inside the box.

    Attributes:
        centre: (batch, *shape), in the box.
        norm: `"linf"` or `"l2"`.
        radius: of the ball, positive.
        lower, upper: (batch, *shape): the smallest and largest number of the format that is in the
            box and, for `"linf"`, in the ball.
        is_exact: project to what is inside in exact arithmetic; else clamp as libraries do, whose
            x0 + radius may be rounded outwards.
        box: the box's ends.
    """

    centre: Tensor
    norm: Norm
    radius: float
    lower: Tensor
    upper: Tensor
    is_exact: bool
    box: tuple[float, float]

    @classmethod
    def around(
        cls, x: Tensor, norm: Norm, radius: float, box: tuple[float, float], *, is_exact: bool
    ) -> "Region":
        """The region around x, which lies in the box.

        Raises:
            ValueError: two of its points may be further apart than any number of the format, or of
                float32 for half formats: `either` could not choose between them.
        """
        widest = min(box[1] - box[0], 2 * radius)
        if widest > max(torch.finfo(f).max for f in (x.dtype, torch.float32)):
            raise ValueError(
                f"points of this box and radius are up to {widest:g} apart, which {x.dtype} cannot "
                "hold: give a smaller radius or box"
            )
        nothing = torch.zeros((), dtype=x.dtype, device=x.device)
        low, high = (
            _inside(nothing, end, inwards=side) for end, side in zip(box, (1, -1), strict=True)
        )
        if norm == "linf":
            low = _inside(x, -radius, inwards=1).clamp_(min=low)
            high = _inside(x, radius, inwards=-1).clamp_(max=high)
        return cls(x, norm, radius, low.expand_as(x), high.expand_as(x), is_exact, box)

    def project_(self, x: Tensor) -> Tensor:
        """The points of x, or those of the region that stand for them; x is used up."""
        if not self.is_exact:
            return self._as_libraries_do(x)
        if self.norm == "l2":
            x = self._towards_centre(x)
        return x.clamp_(self.lower, self.upper)

    def excess(self, x: Tensor) -> Tensor:
        """(batch,): by how many float64 ulps of the radius x is outside; at most 0 inside."""
        apart = x.to(torch.float64, copy=True).sub_(self.centre).flatten(1)
        if self.norm == "linf":
            distance = apart.abs_().amax(1)
        else:
            distance = torch.linalg.vector_norm(apart, dim=1)
        found: Tensor = (distance - self.radius) / (self.radius * 2.0**-52)
        return found

    def start(self, seed: int, restart: int) -> Tensor:
        """A random point on the sphere, brought into the box.

        It depends on the seed, the restart and the sample's own numbers, and on no other sample.
        """
        noise = torch.stack([_noise(x, seed, restart, self.norm) for x in self.centre])
        step = self.radius * noise.to(self.centre.device)
        return self.project_((step.to(torch.float64) + self.centre).to(self.centre.dtype))

    def moved(self, x: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """x after a step up the gradient: its sign, or its direction; 0 stays put.

        Args:
            x: (batch, *shape).
            gradient: as large; where it is not finite, size must be 0.
            size: (batch,), of the step.
        """
        if self.norm == "linf":
            direction = gradient.sign().to(x.dtype)
        else:
            flat = gradient.to(torch.float64).flatten(1)
            length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            flat = torch.where((length > 0) & (length < torch.inf), flat / length, 0.0)
            direction = flat.reshape(gradient.shape).to(x.dtype)
        size = by_sample(size, x).to(x.dtype)
        return self.project_(torch.addcmul(x, direction, size))

    def carried_on(self, x: Tensor, moved: Tensor, last: Tensor, momentum: float) -> Tensor:
        """x + (1 - momentum) (moved - x) + momentum (x - last), projected; `moved` is used up."""
        step = moved.sub_(x).mul_(1 - momentum).add_(x)
        return self.project_(step.add_((x - last).mul_(momentum)))

    def _towards_centre(self, x: Tensor) -> Tensor:
        """x where it is in the ball; else what its ray meets, rounded towards the centre."""
        wide = self.centre.to(torch.float64)
        apart = x.to(torch.float64) - wide
        length = torch.linalg.vector_norm(apart.flatten(1), dim=1)
        factor = (self.radius * _INSIDE / length).clamp(max=1.0)
        factor = by_sample(factor, x)
        wanted = apart * factor
        found = (wide + wanted).to(x.dtype)
        too_far = (found.to(torch.float64) - wide).abs() > wanted.abs()
        inwards = torch.nextafter(found, self.centre)
        return torch.where(factor < 1, torch.where(too_far, inwards, found), x)

    def _as_libraries_do(self, x: Tensor) -> Tensor:
        apart = x - self.centre
        if self.norm == "linf":
            apart = apart.clamp(-self.radius, self.radius)
        else:
            length = torch.linalg.vector_norm(apart.flatten(1), dim=1)
            factor = (self.radius / length).clamp(max=1.0)
            apart = apart * by_sample(factor, x)
        return (self.centre + apart).clamp(*self.box)


def by_sample(each: Tensor, x: Tensor) -> Tensor:
    """A number (batch,) for each sample, in a shape that meets x (batch, *shape)."""
    return each.reshape(-1, *[1] * (x.ndim - 1))


def either(first: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x for the samples marked in `first` (batch,) bool, and `other` for the rest.

    Exact, but for the sign of 0: weights 0 and 1 leave no rounding, unless the difference of two
    points overflows (see `around`; half formats compute it in float32). `torch.where` takes several
    times as long, because its condition would be broadcast.
    """
    return torch.lerp(other, x, by_sample(first, x).to(x.dtype))


def _inside(centre: Tensor, offset: float, *, inwards: int) -> Tensor:
    """The number of the centre's format nearest to centre + offset that is not beyond it.

    The sum of two float64 numbers is a rounded sum and what it lost, exactly (Knuth).

    Args:
        centre: in the format of the result.
        offset: to be added.
        inwards: 1 or -1, the direction in which a number that is beyond is moved.
    """
    total = centre.to(torch.float64) + offset
    found = total.to(centre.dtype)
    over = total - found
    beyond = over > 0 if inwards > 0 else over < 0
    equal = over.eq_(0)
    if bool(equal.any()):
        part = total - centre
        lost = (centre - (total - part)) + (offset - part)
        beyond |= (equal > 0) & (lost * inwards > 0)
    towards = torch.tensor(inwards * math.inf, dtype=centre.dtype, device=centre.device)
    return torch.where(beyond, torch.nextafter(found, towards), found)


def _noise(x: Tensor, seed: int, restart: int, norm: Norm) -> Tensor:
    """A random direction of length 1 in the norm, float64, from the sample's own numbers."""
    content = x.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}/{restart}/".encode() + content).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    if norm == "linf":
        u = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return u / u.abs().max()
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found: Tensor = u / torch.linalg.vector_norm(u)
    return found
