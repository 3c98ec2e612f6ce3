"""`fperr.attack`: gradient attacks whose loss and arithmetic are arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fperr.attacks.arguments import checked_request, loss_in_scenario
from fperr.attacks.goal import Goal
from fperr.attacks.options import AttackOptions
from fperr.attacks.outcome import Outcome
from fperr.attacks.pgd import AttackRun, OnStep, run_apgd, run_pgd
from fperr.attacks.progress import Progress
from fperr.attacks.region import Region
from fperr.caller_state import in_neutral_state
from fperr.formats import Format
from fperr.networks.model import Accessor
from fperr.vocabulary import (
    AttackFormat,
    Method,
    Norm,
    Projection,
    Reduction,
    ScenarioName,
    Schedule,
)

_MOMENTUM = 0.25  # of the MIFPE papers' code


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """The settings of an attack that name its result.

    Attributes:
        method, loss, format, norm, radius: Arguments of `attack`.
        is_targeted: Whether success is the prediction of a target class.
    """

    method: str
    loss: str
    format: str
    norm: str
    radius: float
    is_targeted: bool

    def __str__(self) -> str:
        return f"{self.method}/{self.loss}/{self.format}, {self.norm} {self.radius:g}"


@dataclass(frozen=True, slots=True, repr=False)
class AttackResult:
    """The points that an attack reached, and whether they are adversarial.

    It prints as one line: how many samples withstand, their share with Wilson's 95 % interval, and
    which attack it was.

    Attributes:
        adversarial: First points (batch, *shape) that reached the goal; for a sample that never
            did, the point with the smallest margin.
        best: Points (batch, *shape) with the smallest margin. They differ from `adversarial` only
            with freeze=False, after success.
        success: Whether the goal was reached, (batch,) bool, clean errors included: the network
            predicts so in the arithmetic of the attack (`"exact"`: in the input's format), and
            predicts so again at `adversarial`.
        first_success_step: Step of the first success, (batch,) int64: 0 for the clean input, 1 for
            the start, 1 + i after step i, and -1 for never.
        best_margin: Smallest margin met, (batch,) float64: z_y - max_{i != y} z_i, or for targeted
            attacks max_{i != t} z_i - z_t.
        is_finite: Whether all logits and gradients were finite, (batch,) bool. A gradient that is
            not finite counts as 0, and logits that are not finite are no success. A logit of -inf
            is an absent class and does no harm, unless it is the label's, or no other class is
            present.
        is_judged: Whether the sample was judged, (batch,) bool: the attack succeeded, or all logits
            that it met were finite. Otherwise NaN or overflowing logits hide what the network
            predicts, or a second prediction at `adversarial` differs from the first: such a sample
            is neither fooled nor robust.
        is_clean_correct: Whether the prediction at the clean input is y, (batch,) bool; false if
            the logits are not finite there.
        gradient_steps: Number of gradients taken before the first success, (batch,) int64.
        zero_gradient_steps: Number of those gradients that were exactly zero, (batch,) int64: the
            attack had no direction there.
        broken_gradient_steps: Number of those gradients that were not finite, (batch,) int64.
        excess_ulps: Distance of `adversarial` beyond the ball's surface, (batch,) float64, in ulps
            (2^-52 of the radius); negative inside, and never above 0 with the exact projection.
        settings: Settings of the attack; None if the result was put together by hand.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(2)
        >>> result = fperr.attack(
        ...     zoo.load("fashion_standard"), images.x, images.y, radius=0.1, steps=10
        ... )
        >>> result
        AttackResult(0 of 2 withstand, 0.0 % [0.0, 65.8], pgd/tmifpe/float32, linf 0.1)
        >>> result.outcome.fooled
        2
    """

    adversarial: Tensor
    best: Tensor
    success: Tensor
    first_success_step: Tensor
    best_margin: Tensor
    is_finite: Tensor
    is_judged: Tensor
    is_clean_correct: Tensor
    gradient_steps: Tensor
    zero_gradient_steps: Tensor
    broken_gradient_steps: Tensor
    excess_ulps: Tensor
    settings: AttackSettings | None = None

    def __repr__(self) -> str:
        kind = "" if self.settings is None else f", {self.settings}"
        return f"AttackResult({self.outcome.brief}{kind})"

    @property
    def outcome(self) -> Outcome:
        """Counts of the samples, and a sentence about them."""
        return Outcome.from_columns(
            success=self.success,
            is_judged=self.is_judged,
            is_clean_correct=self.is_clean_correct,
            is_finite=self.is_finite,
            gradient_steps=self.gradient_steps,
            zero_gradient_steps=self.zero_gradient_steps,
            broken_gradient_steps=self.broken_gradient_steps,
        )

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that were judged and withstood."""
        return self.outcome.robust_accuracy

    @property
    def clean_accuracy(self) -> float:
        """The share of samples whose clean input is classified as y, with finite logits."""
        return self.outcome.clean_accuracy

    @property
    def sentence(self) -> str:
        """A sentence: how many samples withstood, were not judged, or never had a gradient."""
        return self.outcome.sentence


@in_neutral_state
def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    method: Method = "pgd",
    loss: str = "tmifpe",
    norm: Norm = "linf",
    steps: int = 100,
    targets: Tensor | None = None,
    format: AttackFormat | Format = "float32",
    scenario: ScenarioName | None = None,
    seed: int = 0,
    restarts: int = 1,
    schedule: Schedule = "cosine",
    step_size: float | None = None,
    momentum: float = _MOMENTUM,
    random_start: bool = True,
    freeze: bool = True,
    reduction: Reduction = "sum",
    projection: Projection = "exact",
    box: tuple[float, float] = (0.0, 1.0),
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    device: str | torch.device | None = None,
    on_step: OnStep | None = None,
) -> AttackResult:
    """Search for adversarial points near every sample, by gradient ascent on a loss, in one batch.

    The default is the recipe of the MIFPE papers' code: a random start on the ball's surface, steps
    of 2 radius cos(pi i / 2N), i = 0, ..., N - 1, and momentum 0.25. Samples that have succeeded
    are not moved any more.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K), on any
            device. A class whose logit is -inf is absent, as if the model had no such output; it is
            neither a label nor a target.
        x: Clean inputs (batch, *shape), float16 to float64, within the box. Points of the attack
            have the same dtype.
        y: True labels (batch,), int64.
        radius: Radius of the ball around each clean input, in the norm and in the units of x; no
            larger than the largest distance of two points of the box.
        method: `"pgd"`, `"fgsm"` (one step of size radius from x, without a random start) or
            `"apgd"`.
        loss: Name of the loss that is ascended; `fperr.measure` lists them.
        norm: `"linf"` or `"l2"`.
        steps: Number of gradients in each run.
        targets: Target classes (batch,), int64. If they are given, success is the prediction of the
            target.
        format: Floating-point format of network and gradient, `"float16"`, `"bfloat16"`, `"tf32"`,
            `"float32"` or `"float64"` (the network is cast), one with emulated kernels, a
            `fperr.formats.Format` of your own, or `"exact"`: exact gradients.
            These are float64's where float32 agrees and the estimated relative error is 2^-29 at
            most; else they are proved to 2^-44.
        scenario: Name of a scenario that T-MIFPE assumes throughout. By default it sees in the
            logits whether the attack has succeeded, and chooses T accordingly; with this argument
            one can measure what a wrong assumption costs. MIFPE has a fixed T, the same in every
            scenario.
        seed: Seed of the random starting points. Each start depends only on that sample's values,
            not on the batch.
        restarts: Number of runs, each from another start.
        schedule: `"cosine"`, `"linear"` or `"constant"` step sizes. APGD halves them instead.
        step_size: Size of the first step, in the units of the radius; by default 2 radius.
        momentum: Weight m of the last move, from 0 to below 1; the step's weight is 1 - m. 0.25 is
            the alpha = 0.75 of Croce and Hein.
        random_start: Whether runs start at random points; otherwise at x.
        freeze: Whether samples that have succeeded are not moved any more.
        reduction: `"sum"` or `"mean"`: how the losses of the batch are combined before they are
            differentiated.
        projection: `"exact"`: no point is outside the ball, in exact arithmetic. `"library"`: the
            usual clamps, which may leave the ball by a rounding.
        box: Smallest and largest value of an input.
        logits: Position of the logits in what the model returns: a name (a key or an attribute), an
            index, or a function. None: the model returns logits.
        accept_probabilities: Whether to attack a model that returns probabilities; otherwise it is
            refused.
        device: Device to run on, e.g. `"cuda"`, or `"auto"`; model and x are copied there, and the
            result is there. None: the model's own, where x must be.
        on_step: Function called at every step with the step's number, and with copies of the
            points, logits and gradients.

    Returns:
        The points reached, and counts by sample.

    Raises:
        ValueError, TypeError: An argument is wrong; says what to do.
        ModelError: The model is random, depends on its batch, is switched to training mode during
            the attack, or no gradient reaches x.

    Warns:
        UnjudgedWarning: Samples could not be judged.
        NoGradientWarning: Samples never had a gradient that is finite and not zero.
        UncertifiedGradientWarning: An exact gradient could not be certified, and why.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images = data.fashion_mnist_1000().first(2)
        >>> model = zoo.load("fashion_standard")
        >>> result = fperr.attack(model, images.x, images.y, radius=0.1, steps=10, format="float16")
        >>> result.success
        tensor([True, True])
        >>> bool(((result.adversarial - images.x).abs() <= 0.1).all())
        True
    """
    loss = loss_in_scenario(loss, scenario)
    options = AttackOptions(
        radius, method, norm, steps, seed, restarts, schedule, step_size, momentum, random_start,
        freeze, reduction, projection, box, on_step,
    )  # fmt: skip
    options.check_inputs(x)
    request = checked_request(
        model, x, y, loss=loss, targets=targets, format=format, logits=logits,
        accept_probabilities=accept_probabilities, device=device,
    )  # fmt: skip
    x, source, clean_logits = request.x, request.source, request.clean
    probabilities = clean_logits.to(torch.float64).softmax(1)
    goal = Goal(request.loss, request.y, request.targets, reduction == "mean", probabilities)
    region = Region.around(x, norm, radius, box, is_exact=projection == "exact")
    progress = Progress.at_clean_inputs(x, clean_logits, goal)
    is_clean_correct = (clean_logits.argmax(1) == request.y) & progress.is_judged
    plan = options.plan
    run = AttackRun(source, region, goal, plan, on_step, freeze)
    run_method = run_apgd if method == "apgd" else run_pgd
    for restart in range(restarts):
        start = region.random_start(seed, restart) if options.starts_randomly else x
        start = run.unless_frozen(progress.success, progress.x, start)
        # a run is a start and `count` steps; the clean input is point 0
        offset = 1 + restart * (plan.count + 1)
        with source.running():
            progress = run_method(run, start, progress, offset)
    if format == "exact":  # what withstood without its exact gradient has withstood nothing
        progress = progress.judged_with_all_gradients()
    progress = progress.confirmed(source.logits(progress.x), goal)
    result = AttackResult(
        progress.x,
        progress.best,
        progress.success,
        progress.first_success_step,
        progress.best_margin,
        progress.is_finite,
        progress.is_judged,
        is_clean_correct,
        progress.gradient_steps,
        progress.zero_gradient_steps,
        progress.broken_gradient_steps,
        region.excess_ulps(progress.x),
        AttackSettings(method, loss, str(format), norm, float(radius), targets is not None),
    )
    result.outcome.warn(stacklevel=4)  # at the line that called `attack`, above its decorator
    return result
