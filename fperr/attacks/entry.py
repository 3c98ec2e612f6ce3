"""`fperr.attack`: gradient attacks whose loss and arithmetic are arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fperr.attacks.arguments import check_options, checked_request, loss_in_scenario
from fperr.attacks.goal import Goal
from fperr.attacks.outcome import Outcome
from fperr.attacks.pgd import AttackRun, OnStep, StepPlan, run_apgd, run_pgd
from fperr.attacks.progress import Progress
from fperr.attacks.region import Region
from fperr.caller_state import in_neutral_state
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
    """What an attack was: as much of it as names its result.

    Attributes:
        method, loss, format, norm, radius: as given to `attack`.
        is_targeted: Success is the prediction of a target class.
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
    """What an attack found.

    It prints as one line: how many samples withstand, their share with Wilson's 95 % interval, and
    which attack it was.

    Attributes:
        adversarial: (batch, *shape): the first point that reached the goal; where none did, the
            one that came nearest.
        best: (batch, *shape): the point with the smallest margin; another one only with
            freeze=False, after success.
        success: (batch,) bool, clean errors included, as the network predicts in the arithmetic
            of the attack (`"exact"`: in the input's format), and predicts again at `adversarial`.
        first_success_step: (batch,) int64: 0 the clean input, 1 the start, 1 + i after step i; -1
            never.
        best_margin: (batch,) float64: the smallest of z_y - max_{i != y} z_i (targeted: of
            max_{i != t} z_i - z_t) that was seen.
        is_finite: (batch,) bool: all logits and gradients were; a gradient that was not counts
            as 0, and logits that are not are no success. A logit of -inf is an absent class and
            does no harm, unless it is the label's, or no other class is present.
        is_judged: (batch,) bool: the attack succeeded, or all logits that it met were finite. Where
            not, NaN or overflowing logits hide what the network predicts, or a second prediction
            at `adversarial` is another one: such a sample is neither fooled nor robust.
        is_clean_correct: (batch,) bool: the prediction at the clean input is y; not where its
            logits are not finite.
        gradient_steps: (batch,) int64: how many gradients were taken before the first success.
        zero_gradient_steps: (batch,) int64: how many of them were exactly zero: the attack had no
            direction there.
        broken_gradient_steps: (batch,) int64: how many of them were not finite.
        excess_ulps: (batch,) float64: by how many ulps (2^-52 of the radius) `adversarial` lies
            outside the ball: never above 0 with the exact projection.
        settings: which attack it was; None where a result was put together by hand.
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
        """The samples counted, and a sentence about them."""
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
        """How many withstood, could not be judged, and never had a gradient."""
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
    format: AttackFormat = "float32",
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
    on_step: OnStep | None = None,
) -> AttackResult:
    """Attack every sample, in one batch.

    The default is the recipe of the MIFPE papers' code: a random start on the ball's surface,
    steps of 2 radius cos(pi i / 2N), momentum 0.25; samples that have succeeded stay put.

    Args:
        model: x to logits (batch, K), in evaluation mode; any device. A class whose logit is -inf
            is absent, as if the model had no such output; it is neither a label nor a target.
        x: (batch, *shape), float16 to float64, within the box. Points stay in its format.
        y: (batch,) int64, the true labels.
        radius: of the ball; at most what the points of the box are apart in the norm.
        method: `"pgd"`, `"fgsm"` (one step of size radius from x, no random start) or `"apgd"`.
        loss: a name of the registry, ascended; `fperr.measure` lists them.
        norm: `"linf"` or `"l2"`.
        steps: gradients in each run.
        targets: (batch,) int64: classes to reach; success then is the prediction of the target.
        format: Floating-point format of network and gradient, `"float16"`, `"bfloat16"`, `"tf32"`,
            `"float32"` or `"float64"` (the network is cast), or `"exact"`: exact gradients.
        scenario: forced on T-MIFPE, which otherwise sees in the logits whether an attack has
            succeeded: what a misdetected phase costs. Makes no difference to MIFPE's fixed T.
        seed: of the starts. A sample's start depends on its numbers, not on its neighbours.
        restarts: runs from other starts.
        schedule: `"cosine"`, `"linear"` or `"constant"` step sizes; APGD halves them instead.
        step_size: the first one; None: 2 radius.
        momentum: weight m of the last move, and 1 - m of the step: 0.25 is the alpha = 0.75 of
            Croce and Hein.
        random_start: else from x.
        freeze: samples that have succeeded stay where they are.
        reduction: how a batch's losses are put together before differentiation.
        projection: `"exact"`: no point is outside, in exact arithmetic; `"library"`: the usual
            clamps, which may leave the ball by a rounding.
        box: where inputs live.
        logits: where the logits are in what the model returns: a name (a key or an attribute), an
            index, or a function.
        accept_probabilities: do not refuse a model that returns probabilities.
        on_step: called with the step's number, and copies of points, logits and gradients, at every
            step.

    Raises:
        ValueError, TypeError: an argument is wrong; says what to do.
        ModelError: the model is random, depends on its batch, is switched to training mode along
            the way, or no gradient reaches x.

    Warns:
        UnjudgedWarning: samples could not be judged.
        NoGradientWarning: samples never had a gradient that is finite and not zero.
    """
    loss = loss_in_scenario(loss, scenario)
    flags = {"random_start": random_start, "freeze": freeze}
    check_options(
        radius, method, norm, steps, seed, restarts, schedule, step_size, momentum, flags,
        reduction, projection, box, on_step, x,
    )  # fmt: skip
    request = checked_request(
        model, x, y, loss=loss, targets=targets, format=format, logits=logits,
        accept_probabilities=accept_probabilities,
    )  # fmt: skip
    x, source, clean_logits = request.x, request.source, request.clean
    probabilities = clean_logits.to(torch.float64).softmax(1)
    goal = Goal(request.loss, request.y, request.targets, reduction == "mean", probabilities)
    region = Region.around(x, norm, radius, box, is_exact=projection == "exact")
    progress = Progress.at_clean_inputs(x, clean_logits, goal)
    is_clean_correct = (clean_logits.argmax(1) == request.y) & progress.is_judged
    is_fgsm = method == "fgsm"
    plan = StepPlan(
        1 if is_fgsm else steps,
        "constant" if is_fgsm else schedule,
        radius if is_fgsm else (2 * radius if step_size is None else step_size),
        momentum,
    )
    run = AttackRun(source, region, goal, plan, on_step, freeze)
    run_method = run_apgd if method == "apgd" else run_pgd
    for restart in range(restarts):
        start = region.random_start(seed, restart) if random_start and not is_fgsm else x
        start = run.unless_frozen(progress.success, progress.x, start)
        # a run is a start and `count` steps; the clean input is point 0
        offset = 1 + restart * (plan.count + 1)
        with source.running():
            progress = run_method(run, start, progress, offset)
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
        AttackSettings(method, loss, format, norm, float(radius), targets is not None),
    )
    result.outcome.warn(stacklevel=4)  # at the line that called `attack`, above its decorator
    return result
