"""The arms: the same attack, from the same starts, on different losses and in different arithmetic.

Every arm takes the steps that `fperr.attack` takes by default; only the gradient differs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fperr.attacks import AttackResult, AttackWarning, attack_in_batches
from fperr.errors import UncertifiedGradientWarning
from fperr.formats import Format
from fperr.vocabulary import Norm


@dataclass(frozen=True, slots=True)
class Arm:
    """One attack of the comparison.

    Attributes:
        name: Name of its column.
        loss: Loss that is ascended.
        is_exact: Whether its gradients are exact; else they are computed in the format.
        words: The arm in words, for tables.
    """

    name: str
    loss: str
    is_exact: bool
    words: str


CE = Arm("ce", "ce", False, "cross-entropy")
EXACT_CE = Arm("exact_ce", "ce", True, "cross-entropy, exact gradients")
STABLE_CE = Arm("stable_ce", "stable_ce", False, "stable cross-entropy")
MIFPE = Arm("mifpe", "mifpe", False, "MIFPE")
EXACT_MIFPE = Arm("exact_mifpe", "mifpe", True, "MIFPE, exact gradients")
TMIFPE = Arm("tmifpe", "tmifpe", False, "T-MIFPE")
CW = Arm("cw", "cw", False, "C&W")
UNLIMITED_CE = Arm("unlimited_ce", "unlimited_ce", False, "cross-entropy, exponents unlimited")
IN_FORMAT = (CE, STABLE_CE, CW, MIFPE, TMIFPE)
EXACT = (EXACT_CE, EXACT_MIFPE)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms have in common.

    Attributes:
        model: Network that returns logits, in evaluation mode.
        x, y: Images (n, *shape) and their labels (n,).
        targets: Target classes (n,), or None.
        radius, norm, box: Region of the attack.
        steps: Number of gradients of each run.
        starts: Number of starts of each image.
        format: Floating-point format of the arms that are not exact.
        seed: Seed of the first start; those of the others follow.
        batch_size: Number of images at once.
        accept_probabilities: Whether the model may return probabilities.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    targets: Tensor | None
    radius: float
    norm: Norm
    box: tuple[float, float]
    steps: int
    starts: int
    format: str | Format
    seed: int
    batch_size: int
    accept_probabilities: bool


@dataclass(frozen=True, slots=True)
class ArmResult:
    """How the images fared in an arm.

    Attributes:
        withstands: Share of each image's starts that withstood, (n,); NaN for images that could not
            be judged from some start, and for those that were not attacked.
        is_judged: Whether the image was judged from every start, (n,) bool; true where it was not
            attacked.
        never_had_gradient: Whether every gradient from every start was exactly zero, (n,) bool.
    """

    withstands: np.ndarray
    is_judged: np.ndarray
    never_had_gradient: np.ndarray


def run_arm(
    arm: Arm,
    setting: Setting,
    folder: Path,
    images: np.ndarray,
    advance: Callable[[int], object],
) -> ArmResult:
    """Attack images in one arm, from every start; written to the folder as it goes.

    Args:
        arm: The arm.
        setting: What all arms have in common.
        folder: Folder of the arm, with a folder for each start.
        images: Numbers of the images to attack.
        advance: Called with the number of images of each batch that is done.

    Raises:
        ValueError, FperrError: As `fperr.attack`.
    """
    rows = torch.from_numpy(images)
    frames = [
        _one_start(arm, setting, folder / f"start-{start}", rows, start, advance)
        for start in range(setting.starts)
    ]
    return arm_result(frames, images, len(setting.x))


def arm_result(frames: Sequence[pd.DataFrame], images: np.ndarray, n: int) -> ArmResult:
    """How images fared in an arm.

    Args:
        frames: Columns of `fperr.attack` for each start, a row for each of `images`.
        images: Numbers of the images that were attacked.
        n: Number of all images.
    """
    withstood = np.mean([~f["success"].to_numpy(bool) for f in frames], axis=0)
    judged = np.all([f["is_judged"].to_numpy(bool) for f in frames], axis=0)
    dead = np.all(
        [
            (f["zero_gradient_steps"] == f["gradient_steps"]) & (f["gradient_steps"] > 0)
            for f in frames
        ],
        axis=0,
    )
    withstands, is_judged, never = np.full(n, np.nan), np.ones(n, bool), np.zeros(n, bool)
    withstands[images] = np.where(judged, withstood, np.nan)
    is_judged[images], never[images] = judged, dead
    return ArmResult(withstands, is_judged, never)


def _one_start(
    arm: Arm,
    setting: Setting,
    folder: Path,
    rows: Tensor,
    start: int,
    advance: Callable[[int], object],
) -> pd.DataFrame:
    """The columns of `attack_in_batches` for one start of each image."""

    def of_batch(result: AttackResult) -> None:
        advance(len(result.success))

    with warnings.catch_warnings():  # the columns say it
        warnings.simplefilter("ignore", AttackWarning)
        warnings.simplefilter("ignore", UncertifiedGradientWarning)
        return attack_in_batches(
            setting.model,
            setting.x[rows],
            setting.y[rows],
            folder,
            batch_size=setting.batch_size,
            advance=of_batch,
            radius=setting.radius,
            norm=setting.norm,
            box=setting.box,
            steps=setting.steps,
            seed=setting.seed + start,
            loss=arm.loss,
            accept_probabilities=setting.accept_probabilities,
            format="exact" if arm.is_exact else setting.format,
            targets=None if setting.targets is None else setting.targets[rows],
        )
