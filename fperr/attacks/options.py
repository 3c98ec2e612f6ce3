"""The options of an attack: a record, whose values are checked once, when it is made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from fperr import checks
from fperr.attacks.pgd import OnStep, StepPlan
from fperr.vocabulary import Method, Norm, Projection, Reduction, Schedule


@dataclass(frozen=True, slots=True)
class AttackOptions:
    """The options of `fperr.attack` that do not depend on the network; see there.

    Raises:
        TypeError, ValueError: When it is made: an option is not usable.
    """

    radius: float
    method: Method
    norm: Norm
    steps: int
    seed: int
    restarts: int
    schedule: Schedule
    step_size: float | None
    momentum: float
    random_start: bool
    freeze: bool
    reduction: Reduction
    projection: Projection
    box: tuple[float, float]
    on_step: OnStep | None

    def __post_init__(self) -> None:
        checks.choice("method", self.method, get_args(Method))
        checks.choice("norm", self.norm, get_args(Norm))
        checks.choice("schedule", self.schedule, get_args(Schedule))
        checks.choice("reduction", self.reduction, get_args(Reduction))
        checks.choice("projection", self.projection, get_args(Projection))
        checks.whole_number("steps", self.steps, 1)
        checks.whole_number("restarts", self.restarts, 1)
        checks.whole_number("seed", self.seed, 0)
        checks.flag("random_start", self.random_start)
        checks.flag("freeze", self.freeze)
        checks.real_number("radius", self.radius, above=0.0)
        if self.step_size is not None:
            checks.real_number("step_size", self.step_size, above=0.0)
        checks.real_number("momentum", self.momentum, least=0.0, below=1.0)
        if self.is_fgsm and (self.step_size is not None or self.restarts != 1):
            raise ValueError(
                "method 'fgsm' is one step of the radius: leave out step_size, restarts"
            )
        if self.on_step is not None and not callable(self.on_step):
            raise TypeError(
                f"on_step must be a function, got {checks.shown(self.on_step)}: give one"
            )
        _ends(self.box)

    @property
    def is_fgsm(self) -> bool:
        """Whether the attack is one step of the radius from x."""
        return self.method == "fgsm"

    @property
    def starts_randomly(self) -> bool:
        """Whether each run starts from a random point of the ball."""
        return self.random_start and not self.is_fgsm

    @property
    def plan(self) -> StepPlan:
        """Number, schedule, first size and momentum of the steps."""
        if self.is_fgsm:
            return StepPlan(1, "constant", self.radius, self.momentum)
        size = 2 * self.radius if self.step_size is None else self.step_size
        return StepPlan(self.steps, self.schedule, size, self.momentum)

    def check_inputs(self, x: object) -> None:
        """Check that the inputs lie in the box, and that the ball is not wider than the box.

        Raises:
            TypeError, ValueError: They are no inputs, outside the box, or the radius is too large.
        """
        low, high = _ends(self.box)
        inputs = checks.inputs("x", x)
        if not bool(((inputs >= low) & (inputs <= high)).all()):
            broken = int(inputs.isnan().sum())
            contents = (
                f"{broken} NaN" if broken else f"{float(inputs.min())!r} to {float(inputs.max())!r}"
            )
            remedy = "scale it, or give box=(lowest, highest)"
            raise ValueError(
                f"x must lie in the box {(low, high)}, got {contents}: "
                + ("leave those samples out" if broken else remedy)
            )
        check_radius(self.radius, self.norm, (low, high), inputs)


def check_radius(radius: float, norm: str, box: tuple[float, float], x: Tensor) -> None:
    """Refuse a ball that contains the whole box, whatever its centre: 8 was given for 8/255.

    Raises:
        ValueError: the radius is too large; says what may be meant.
    """
    width = box[1] - box[0]
    diameter = width * (math.sqrt(x[0].numel()) if norm == "l2" else 1.0)
    if radius <= diameter * (1 + 2.0**-40):  # the square root and the product are rounded
        return
    suggestion = f" Did you mean radius={radius:g}/255?" if radius / 255 < diameter else ""
    raise ValueError(
        f"radius must be at most {diameter:g}, by which the points of box {box} are apart in "
        f"{norm}, got {radius!r}.{suggestion} If x lives in another box, give box=(lowest, highest)"
    )


def _ends(box: object) -> tuple[float, float]:
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 2:
        raise TypeError(f"box must be (lowest, highest), got {checks.shown(box)}: give (0.0, 1.0)")
    low, high = (checks.real_number("box", end) for end in box)
    if not low < high:
        raise ValueError(f"box must be (lowest, highest), got {box}: give the lower end first")
    return low, high
