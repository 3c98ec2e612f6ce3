"""The outcomes of all arms, a row an image, and the attack in words."""

import importlib.metadata
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fperr.attribution.arms import EXACT, Arm, ArmResult
from fperr.formats import Format, format_named

_PACKAGES = ("fperr", "torch")


def outcome_frame(
    labels: np.ndarray, results: Mapping[str, ArmResult], everywhere: Sequence[Arm]
) -> pd.DataFrame:
    """The outcomes, a row an image; it is judged if all arms that ran on all images judge it.

    Args:
        labels: True classes of the images, (n,).
        results: Results by the name of the arm.
        everywhere: Arms that ran on all images.
    """
    judged = np.all([results[arm.name].is_judged for arm in everywhere], axis=0)
    columns = {name: result.withstands for name, result in results.items()}
    for arm in EXACT:
        columns.setdefault(arm.name, np.full(len(labels), np.nan))
    return pd.DataFrame(
        {
            "sample": range(len(labels)),
            "label": labels,
            "is_judged": judged,
            **columns,
            "never_had_gradient": results["ce"].never_had_gradient,
        }
    )


def attack_words(
    format: str | Format, norm: str, radius: float, steps: int, starts: int, *, is_targeted: bool
) -> str:
    """The attack of all arms in words."""
    targeted = "targeted, " if is_targeted else ""
    fmt = format_named(format) if isinstance(format, str) else format
    emulated = "" if fmt.emulation is None else " (emulated)"
    return (
        f"PGD, {fmt.name}{emulated}, {targeted}{norm} {radius:g}, {steps} steps, {starts} "
        f"start{'s' * (starts > 1)}"
    )


def provenance_of(
    network: str, *, weights: str, images: str, n: int, box: tuple[float, float], attack: str,
    seed: int, exact: str, device: str,
) -> dict[str, str]:  # fmt: skip
    """What was attacked, how, and with what, for the foot of the page.

    Args:
        network: Name of the network.
        weights: Digest of its weights.
        images: Digest of images and classes.
        n: Number of images.
        box: Smallest and largest value of an input.
        attack: The attack in words.
        seed: Seed of the first start.
        exact: Which images have exact gradients: `"all"`, `"sample"` or `"none"`.
        device: Name of the device.
    """
    versions = (f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return {
        "network": network,
        "digest of its weights": weights,
        "images": f"{n}, in the box [{box[0]:g}, {box[1]:g}]",
        "digest of images and classes": images,
        "attack": attack,
        "seed": str(seed),
        "exact gradients": {"all": "at all images", "sample": "at a sample of the images"}.get(
            exact, "at none of the images"
        ),
        "versions": ", ".join(versions),
        "device": device,
    }
