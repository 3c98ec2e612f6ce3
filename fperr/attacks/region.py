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
        centre: (batch, *shape), the inputs, inside the box.
        norm: Norm of the ball, `"linf"` or `"l2"`.
        radius: Radius of the ball, positive.
        lower, upper: (batch, *shape), the smallest and the largest number of the format that is
            inside the box and, for `"linf"`, inside the ball.
        is_exact: Whether points are projected to what is inside in exact arithmetic; else they are
            clamped as libraries do, whose x0 + radius may be rounded outwards.
        box: Lower and upper end of the box.
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
                float32 for half formats: `where_by_sample` could not choose between them.
        """
        widest = min(box[1] - box[0], 2 * radius)
        if widest > max(torch.finfo(f).max for f in (x.dtype, torch.float32)):
            raise ValueError(
                f"points of this box and radius are up to {widest:g} apart, which {x.dtype} cannot "
                "hold: give a smaller radius or box"
            )
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        low, high = (
            _nearest_not_beyond(zero, end, inwards=side)
            for end, side in zip(box, (1, -1), strict=True)
        )
        if norm == "linf":
            low = _nearest_not_beyond(x, -radius, inwards=1).clamp_(min=low)
            high = _nearest_not_beyond(x, radius, inwards=-1).clamp_(max=high)
        return cls(x, norm, radius, low.expand_as(x), high.expand_as(x), is_exact, box)

    def project_(self, x: Tensor) -> Tensor:
        """Project `x` onto the region, **in place**. Do not use `x` afterwards."""
        if not self.is_exact:
            return self._clamped_as_in_libraries(x)
        if self.norm == "l2":
            x = self._projected_onto_ball(x)
        return x.clamp_(self.lower, self.upper)

    def excess_ulps(self, x: Tensor) -> Tensor:
        """By how many float64 ulps of the radius x is outside, (batch,); at most 0 inside."""
        offset = x.to(torch.float64, copy=True).sub_(self.centre).flatten(1)
        if self.norm == "linf":
            distance = offset.abs_().amax(1)
        else:
            distance = torch.linalg.vector_norm(offset, dim=1)
        ulps: Tensor = (distance - self.radius) / (self.radius * 2.0**-52)
        return ulps

    def random_start(self, seed: int, restart: int) -> Tensor:
        """A random point on the sphere for each sample, projected into the box.

        It depends on the seed, the restart and the sample's values, and on no other sample.
        """
        content = self.centre.detach().to("cpu", torch.float64)  # one copy for all samples
        noise = torch.stack([_random_direction(x, seed, restart, self.norm) for x in content])
        offset = self.radius * noise.to(self.centre.device)
        return self.project_((offset.to(torch.float64) + self.centre).to(self.centre.dtype))

    def after_step(self, x: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """The points after a step up the gradient, projected.

        The step follows the gradient's sign (`"linf"`) or its direction (`"l2"`); a gradient that
        is exactly zero leaves x where it is.

        Args:
            x: (batch, *shape), the points.
            gradient: (batch, *shape); where it is not finite, `size` must be 0.
            size: (batch,), the length of the step in the norm.
        """
        if self.norm == "linf":
            direction = gradient.sign().to(x.dtype)
        else:
            flat = gradient.to(torch.float64).flatten(1)
            length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            flat = torch.where((length > 0) & (length < torch.inf), flat / length, 0.0)
            direction = flat.reshape(gradient.shape).to(x.dtype)
        size = per_sample(size, x).to(x.dtype)
        return self.project_(torch.addcmul(x, direction, size))

    def with_momentum(self, x: Tensor, moved: Tensor, last: Tensor, momentum: float) -> Tensor:
        """x + (1 - momentum) (moved - x) + momentum (x - last), projected.

        `moved` is overwritten: do not use it afterwards.
        """
        step = moved.sub_(x).mul_(1 - momentum).add_(x)
        return self.project_(step.add_((x - last).mul_(momentum)))

    def _projected_onto_ball(self, x: Tensor) -> Tensor:
        """The point x where it is in the l2 ball; else the nearest point of the ball.

        Each component is rounded towards the centre's, so that no rounding leads outside.
        """
        centre = self.centre.to(torch.float64)
        offset = x.to(torch.float64) - centre
        length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
        factor = (self.radius * _INSIDE / length).clamp(max=1.0)
        factor = per_sample(factor, x)
        shortened = offset * factor
        rounded = (centre + shortened).to(x.dtype)
        is_too_far = (rounded.to(torch.float64) - centre).abs() > shortened.abs()
        inwards = torch.nextafter(rounded, self.centre)
        return torch.where(factor < 1, torch.where(is_too_far, inwards, rounded), x)

    def _clamped_as_in_libraries(self, x: Tensor) -> Tensor:
        offset = x - self.centre
        if self.norm == "linf":
            offset = offset.clamp(-self.radius, self.radius)
        else:
            length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
            factor = (self.radius / length).clamp(max=1.0)
            offset = offset * per_sample(factor, x)
        return (self.centre + offset).clamp(*self.box)


def per_sample(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each sample, (batch,), in a shape that broadcasts with x (batch, *shape)."""
    return numbers.reshape(-1, *[1] * (x.ndim - 1))


def where_by_sample(is_first: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Select x for the samples marked in `is_first` (batch,) bool, and `other` for the rest.

    Exact, but for the sign of 0: weights 0 and 1 leave no rounding, unless the difference of two
    points overflows (see `Region.around`; half formats compute it in float32). `torch.where` takes
    several times as long, because its condition would be broadcast.
    """
    return torch.lerp(other, x, per_sample(is_first, x).to(x.dtype))


def _nearest_not_beyond(centre: Tensor, offset: float, *, inwards: int) -> Tensor:
    """The number of the centre's format nearest to centre + offset that is not beyond it.

    The sum of two float64 numbers is exactly a rounded sum and its rounding error (Knuth's
    two-sum), so that "beyond" is decided without rounding.

    Args:
        centre: Numbers in the format of the result.
        offset: Offset to be added.
        inwards: Direction, 1 or -1, in which a number that is beyond is moved.
    """
    total = centre.to(torch.float64) + offset
    rounded = total.to(centre.dtype)
    excess = total - rounded
    is_beyond = excess > 0 if inwards > 0 else excess < 0
    is_equal = excess.eq_(0)
    if bool(is_equal.any()):
        # Knuth's two-sum: total + rounding_error is centre + offset exactly
        offset_in_total = total - centre
        rounding_error = (centre - (total - offset_in_total)) + (offset - offset_in_total)
        is_beyond |= (is_equal > 0) & (rounding_error * inwards > 0)
    infinity = torch.tensor(inwards * math.inf, dtype=centre.dtype, device=centre.device)
    return torch.where(is_beyond, torch.nextafter(rounded, infinity), rounded)


def _random_direction(x: Tensor, seed: int, restart: int, norm: Norm) -> Tensor:
    """A random direction of length 1 in the norm, for x in float64 on the CPU.

    The generator is seeded with a digest of the sample's values, the seed and the restart, so that
    a sample starts at the same point in every batch.
    """
    content = x.contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}/{restart}/".encode() + content).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    if norm == "linf":
        u = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return u / u.abs().max()
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    direction: Tensor = u / torch.linalg.vector_norm(u)
    return direction
