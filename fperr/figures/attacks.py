"""The attacks that figures are drawn from, and what withstands them."""

from typing import Any

import pandas as pd
from torch import nn

from fperr import zoo
from fperr.figures.study import Study, Subject
from fperr.vocabulary import AttackFormat

LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe")
MORE_LOSSES = ("ce", "stable_ce", "mifpe", "tmifpe", "cw", "dlr", "gama")
STEPS = 100
SEED = 0
HALF = 300  # images where a half format takes part: on a CPU it takes ten times as long as float32
# of the balls, by network or data set: where robust accuracy is neither 0 nor that of clean images
RADII = {
    "fashion_standard": 0.015,
    "fashion_adversarial": 0.1,
    "fashion_saturated": 0.05,
    "mnist_test": 0.3,
    "cifar10_test_800": 8 / 255,
}


def radius_of(subject: Subject) -> float:
    """Of the attacks on a network, in the maximum norm.

    Raises:
        ValueError: none is set for the network or its data.
    """
    dataset = zoo.entry(subject.name).dataset
    found = RADII.get(subject.name, RADII.get(dataset))
    if found is None:
        raise ValueError(
            f"no radius is set for {subject.name} or {dataset}: choose another network"
        )
    return found


def attacked(
    study: Study,
    subject: Subject,
    *,
    loss: str,
    format: AttackFormat = "float32",
    model: nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """An attack's outcome for each image.

    Args:
        study: where results are kept.
        subject: network and images.
        loss: of the attack.
        format: Floating-point format of the attack, or `"exact"`.
        model: attacked instead of the subject's network.
        options: of `fperr.attack`, other than the standard ones.
    """
    standard = {"radius": radius_of(subject), "steps": STEPS, "seed": SEED, "method": "pgd"}
    options = {**standard, **options, "loss": loss, "format": format}
    return study.attacked(subject, model, **options)


def withstood(found: pd.DataFrame) -> dict[str, int]:
    """How many images there are, how many withstood, and how many could not be judged."""
    robust = is_robust(found)
    unjudged = len(found) - int((robust | found["success"]).sum())
    return {"n": len(found), "robust": int(robust.sum()), "unjudged": unjudged}


def is_robust(found: pd.DataFrame) -> pd.Series:
    """Which images were judged and withstood; another library's frame has but `success`."""
    withstands = ~found["success"]
    return withstands & found["is_judged"] if "is_judged" in found else withstands


def settings_of(study: Study, steps: int) -> dict[str, Any]:
    """Of PGD and APGD, for provenance."""
    return {"steps": steps, "seed": SEED, "radius": {s.name: radius_of(s) for s in study.subjects}}
