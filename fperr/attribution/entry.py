"""`fperr.attribute`: what a robust-accuracy gap is made of."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr import checks
from fperr.attribution.arms import (
    EXACT,
    EXACT_CE,
    Arm,
    ArmResult,
    Setting,
    run_arm,
)
from fperr.attribution.autoattack import fooled_by_autoattack
from fperr.attribution.forecast import allowed, arms_in_format, forecast
from fperr.attribution.outcomes import attack_words, outcome_frame, provenance_of
from fperr.attribution.parts import FLOOR, floor, parts_of
from fperr.attribution.request import (
    AttributionRequest,
    ExactChoice,
    SearchChoice,
    checked_request,
)
from fperr.attribution.result import Attribution
from fperr.attribution.stand_in import StandIn, chosen_images, compared
from fperr.caller_state import in_neutral_state
from fperr.data import digest
from fperr.formats import Format
from fperr.networks.model import Accessor
from fperr.run_folder import RunFolder, opened
from fperr.storage import sealed
from fperr.vocabulary import FormatName, Norm

SETTINGS_FILE = "attribution.json"
FRAME_FILE = "attribution.parquet"
PAGE_FILE = "attribution.html"
_SEARCH_FILE = "autoattack.json"
_BATCH = 250


@in_neutral_state
def attribute(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    norm: Norm = "linf",
    steps: int = 100,
    starts: int = 3,
    format: FormatName | Format = "float32",
    targets: Tensor | None = None,
    exact: ExactChoice = "auto",
    search: SearchChoice | None = None,
    why: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    box: tuple[float, float] = (0.0, 1.0),
    batch_size: int = _BATCH,
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    device: str | torch.device | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Tell how much of an attack's robust accuracy is floating-point error.

    The same attack (PGD with the steps of `fperr.attack`, from the same starts) is run on different
    gradients, and robust accuracies are compared image by image:

    * **numerical**: cross-entropy in the format, minus cross-entropy on exact gradients. Where
      these take too long, stable cross-entropy in the format stands in for them;
    * **loss**: the latter, minus MIFPE (on exact gradients where they are computed);
    * **search**: that, minus the floor: an image's floor is 0 if any start of any arm fooled it,
      or, with `"autoattack"`, AutoAttack.

    They add up to the gap, exactly. Exact arms are judged by the network in the dtype of x, those
    in a format by the network in that format.

    Args:
        model: Module in evaluation mode that maps (batch, *shape) to logits (batch, K).
        x: Clean inputs (n, *shape), in the box.
        y: True labels (n,), int64.
        radius: Radius of the ball around each input, in the norm and in the units of x.
        norm: `"linf"` or `"l2"`.
        steps: Number of gradients of each run.
        starts: Number of random starts of each image; its outcome is the share that withstands.
        format: Floating-point format of network and gradient, e.g. `"float32"`, or one of your own.
        targets: Target classes (n,), int64, for a targeted attack.
        exact: `"all"`: exact gradients for all images. `"sample"`: for the images where
            cross-entropy and stable cross-entropy differ, and 30 others at random. `"none"`.
            `"auto"`: all, if that takes 20 minutes at most, else a sample.
        search: `"restarts"`, `"autoattack"` (of pyautoattack, untargeted), or None: no floor.
        why: Whether to climb from cross-entropy to stable cross-entropy: exponents without limit,
            then no cancellation.
        confidence: Confidence of the intervals.
        seed: Seed of the first start; those of the others follow.
        box: Smallest and largest value of an input.
        batch_size: Number of images at once.
        logits: Position of the logits in what the model returns; None: it returns logits.
        accept_probabilities: Whether to attack a model that returns probabilities; otherwise it is
            refused.
        device: Device to run on, e.g. `"cuda"`, or `"auto"`. None: the model's own, where x must
            be.
        name: Name of the network on the page. None: that of its class.
        out: Folder to write to as it goes; the same call continues it. None: nothing is kept.
        progress: Whether to show progress, and beforehand how long it will take. None: only if
            standard error is a terminal.

    Returns:
        The parts with their intervals, the outcomes of each image, and a sentence.

    Raises:
        TypeError, ValueError: An argument is not usable; the folder holds other settings.
        FperrError: The model is unusable, or has no exact gradients and exact is `"all"` or
            `"sample"`.

    Source: intervals after Bonett and Price (2012); see `fperr.attribution.paired`.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images, model = data.fashion_mnist_1000().first(10), zoo.load("fashion_saturated")
        >>> result = fperr.attribute(model, images.x, images.y, radius=0.05, steps=5, starts=1)
        >>> result.part("numerical").difference.is_told  # its interval excludes 0
        True
    """
    checks.optional_flag("progress", progress)
    request = checked_request(
        model, x, y, radius=radius, norm=norm, steps=steps, starts=starts, format=format,
        targets=targets, exact=exact, search=search, why=why, confidence=confidence, seed=seed,
        box=box, batch_size=batch_size, logits=logits,
        accept_probabilities=accept_probabilities, device=device, name=name,
    )  # fmt: skip
    with _folder(out) as run:
        return _attributed(
            request, run, hidden=not (sys.stderr.isatty() if progress is None else progress)
        )


@contextmanager
def _folder(out: str | Path | None) -> Iterator[RunFolder]:
    """The folder of the run, or one that is removed at the end."""
    if out is not None:
        with opened(checks.path("out", out), SETTINGS_FILE) as run:
            yield run
        return
    with (
        tempfile.TemporaryDirectory(prefix="fperr-") as temporary,
        opened(temporary, SETTINGS_FILE) as run,
    ):
        yield run


def _attributed(request: AttributionRequest, run: RunFolder, *, hidden: bool) -> Attribution:
    setting = request.setting
    in_format = arms_in_format(request)
    exact, note = _decided(request, run, in_format, hidden=hidden)
    run.begin(_settings(request, exact, note))
    # exact arms first: a network without exact gradients is told at once
    everywhere = (*(EXACT if exact == "all" else ()), *in_format)
    n = len(setting.x)
    all_images = np.arange(n)
    results: dict[str, ArmResult] = {}
    with tqdm(total=n * setting.starts * len(everywhere), desc="attribute", disable=hidden) as bar:
        for arm in everywhere:
            bar.set_postfix_str(arm.words)
            results[arm.name] = run_arm(arm, setting, run.path / arm.name, all_images, bar.update)
        stand_in = None
        if exact == "sample":
            stand_in = _stand_in(results, setting, run.path, bar)
    frame = outcome_frame(setting.y.cpu().numpy(), results, everywhere)
    if request.search is not None:
        _add_floor(request, frame, results, run)
    parts = parts_of(frame, is_exact=exact == "all", confidence=request.confidence)
    words = attack_words(
        setting.format, setting.norm, setting.radius, setting.steps, setting.starts,
        is_targeted=setting.targets is not None,
    )  # fmt: skip
    result = Attribution(
        frame, parts, words, stand_in, request.search, note, _provenance(request, exact, words)
    )
    run.publish(FRAME_FILE, frame.to_parquet(index=False))
    run.publish(PAGE_FILE, result.to_html().encode())
    run.check()
    return result


def _decided(
    request: AttributionRequest, run: RunFolder, arms: Sequence[Arm], *, hidden: bool
) -> tuple[ExactChoice, str | None]:
    """How many images get exact gradients, and why there are none; the folder's choice, if any."""
    if run.settings is not None:  # nothing is timed for a run that goes on
        exact = run.settings.get("exact", "sample") if request.exact == "auto" else request.exact
        return exact, run.settings.get("note")
    if request.exact != "auto" and hidden:
        return request.exact, None
    times = forecast(request.setting, len(arms), is_exact=request.exact != "none")
    exact, note = allowed(request.exact, times)
    if not hidden:
        text = times.describe(exact, with_autoattack=request.search == "autoattack")
        tqdm.write(f"attribute: {len(request.setting.x)} images, {text}", file=sys.stderr)
    return exact, note


def _settings(request: AttributionRequest, exact: str, note: str | None) -> dict[str, Any]:
    setting = request.setting
    tensors = [t for t in (setting.x, setting.y, setting.targets) if t is not None]
    return {
        "inputs": digest(*tensors),
        "weights": digest(*setting.model.state_dict().values()),
        "radius": setting.radius,
        "norm": setting.norm,
        "box": list(setting.box),
        "steps": setting.steps,
        "starts": setting.starts,
        "format": setting.format if isinstance(setting.format, str) else repr(setting.format),
        "is targeted": setting.targets is not None,
        "seed": setting.seed,
        "batch_size": setting.batch_size,
        "exact": exact,
        "note": note,
        "search": request.search,
        "why": request.has_ladder,
    }


def _stand_in(
    results: dict[str, ArmResult], setting: Setting, folder: Path, bar: "tqdm[Any]"
) -> StandIn:
    """Run exact gradients on a choice of images, and compare; adds the arm to the results."""
    stable = results["stable_ce"].withstands
    discordant, random = chosen_images(results["ce"].withstands, stable, setting.seed)
    chosen = np.sort(np.concatenate([discordant, random]))
    bar.total += len(chosen) * setting.starts
    bar.set_postfix_str(EXACT_CE.words)
    arm = run_arm(EXACT_CE, setting, folder / EXACT_CE.name, chosen, bar.update)
    results[EXACT_CE.name] = arm
    return compared(stable, arm.withstands, discordant, random)


def _add_floor(
    request: AttributionRequest, frame: pd.DataFrame, results: dict[str, ArmResult], run: RunFolder
) -> None:
    """Add the floor of each image; AutoAttack is run on those that withstand everything."""
    outcomes, is_judged = frame[list(results)], frame["is_judged"].to_numpy()
    fooled = np.zeros(len(frame), bool)
    if request.search == "autoattack":
        left = np.nonzero(is_judged & (floor(outcomes, fooled) == 1))[0]
        if len(left):
            fooled[left] = _kept(run, lambda: fooled_by_autoattack(request.setting, left))
        frame["autoattack_fooled"] = fooled
    frame[FLOOR] = np.where(is_judged, floor(outcomes, fooled), np.nan)


def _kept(run: RunFolder, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What AutoAttack fooled, from the folder, or computed and written to it."""
    content = run.piece(_SEARCH_FILE)
    if content is not None:
        return np.array(json.loads(content)["fooled"], bool)
    fooled = compute()
    piece = {"seal": run.stamp(_SEARCH_FILE), "fooled": fooled.tolist()}
    run.keep(_SEARCH_FILE, sealed(json.dumps(piece).encode()))
    return fooled


def _provenance(request: AttributionRequest, exact: str, words: str) -> dict[str, str]:
    setting = request.setting
    device = setting.x.device
    processor = f"{device}, {torch.backends.cpu.get_cpu_capability()}"
    return provenance_of(
        request.name,
        weights=digest(*setting.model.state_dict().values()),
        images=digest(*(t for t in (setting.x, setting.y, setting.targets) if t is not None)),
        n=len(setting.x),
        box=setting.box,
        attack=words,
        seed=setting.seed,
        exact=exact,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
    )
