"""The attacks that figures are drawn from, and how many images withstand them."""

from typing import Any

import pandas as pd
from torch import nn

from fperr import zoo
from fperr.figures.study import Study, Subject
from fperr.formats import format_named
from fperr.networks.in_format import FormatNetwork
from fperr.vocabulary import FORMAT_NAMES, AttackFormat, FormatName

LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
MORE_LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe", "cw", "dlr", "gama")
STEPS = 100
# float32 as the device computes it, and every format whose kernels are emulated
ARITHMETICS: tuple[FormatName, ...] = tuple(
    name for name in FORMAT_NAMES if name == "float32" or format_named(name).emulation is not None
)
# networks of every kind of margins, on which some images withstand attacks
ATTACKED = (
    "fashion_adversarial", "fashion_standard", "fashion_saturated", "mnist_fastat_pgd",
    "mnist_levelsets_eps0.4",
)  # fmt: skip
# networks most of whose linear layers float8 takes: it changes no convolution, and no size that is
# not a multiple of 16
IN_FLOAT8 = "fashion_mlp", "fashion_transformer"
SEED = 0
HALF = 300  # images where a half format takes part: on a CPU it takes ten times as long as float32
# Radii in the maximum norm, by network or data set. They are such that robust accuracy is neither 0
# nor that of clean images.
RADII = {
    "fashion_standard": 0.015,
    "fashion_adversarial": 0.1,
    "fashion_saturated": 0.05,
    "fashion_mlp": 0.05,
    "fashion_transformer": 0.015,
    "mnist_test": 0.3,
    "cifar10_test_800": 8 / 255,
}


def radius_of(subject: Subject) -> float:
    """The radius, in the maximum norm, of the attacks on a network.

    Raises:
        ValueError: No radius is set for the network or its data set.
    """
    dataset = zoo.entry(subject.name).dataset
    radius = RADII.get(subject.name, RADII.get(dataset))
    if radius is None:
        raise ValueError(
            f"no radius is set for {subject.name} or {dataset}: choose another network"
        )
    return radius


def check_arithmetic(subject: Subject, arithmetic: FormatName) -> None:
    """Check that a format changes a network; nothing is run.

    Raises:
        ModelError: It has no layer that the format changes.
    """
    FormatNetwork(subject.model, format_named(arithmetic), autocast=False)


def attack_outcomes(
    study: Study,
    subject: Subject,
    *,
    loss: str,
    format: AttackFormat = "float32",
    model: nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Attack a network, and return the outcome for each image.

    Args:
        study: Study whose cache holds the results.
        subject: Network and images.
        loss: Name of the loss that the attack maximises.
        format: Floating-point format in which the attack runs the network, or `"exact"`.
        model: Network attacked instead of the subject's.
        options: Options of `fperr.attack` that differ from the standard ones or add to them.
    """
    standard = {"radius": radius_of(subject), "steps": STEPS, "seed": SEED, "method": "pgd"}
    options = {**standard, **options, "loss": loss, "format": format}
    return study.attack_outcomes(subject, model, **options)


def robust_counts(outcome: pd.DataFrame) -> dict[str, int]:
    """Count the images, those that withstood, and those that could not be judged."""
    robust = is_robust(outcome)
    unjudged = len(outcome) - int((robust | outcome["success"]).sum())
    return {"n": len(outcome), "robust": int(robust.sum()), "unjudged": unjudged}


def is_robust(outcome: pd.DataFrame) -> pd.Series:
    """Whether each image was judged and withstood.

    A frame from another library has the column `success` only: there every image was judged.
    """
    withstands = ~outcome["success"]
    return withstands & outcome["is_judged"] if "is_judged" in outcome else withstands


def settings_of(study: Study, steps: int) -> dict[str, Any]:
    """The settings of the attacks PGD and APGD, for provenance."""
    return {"steps": steps, "seed": SEED, "radius": {s.name: radius_of(s) for s in study.subjects}}
