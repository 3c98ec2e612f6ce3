"""The jobs of a campaign: their keys in a spec, and the arms into which each is cut.

A further job is a row of `JOBS`: its keys, the arms of its options, and the function that runs an
arm on a batch. Cells of different jobs with the same arm are one cell, and run once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from fperr.campaign.spec_keys import (
    ATTACKED_FORMATS,
    FLAG,
    FORMATS,
    LOSSES,
    NUMBER,
    POSITIVE,
    TEXTS,
    Key,
    Kind,
    choice,
    whole,
)
from fperr.vocabulary import ENGINE_CHOICES, FORMAT_NAMES, Method, Norm

Options = Mapping[str, Any]
# the arms of `fperr.attribute`: a test compares them with those that it runs
ATTRIBUTION_LOSSES = ("ce", "stable_ce", "cw", "mifpe", "tmifpe")
EXACT_LOSSES = ("ce", "mifpe")
LADDER_LOSS = "unlimited_ce"


@dataclass(frozen=True, slots=True)
class Arm:
    """What is done with a batch of a model's images.

    Attributes:
        kind: Key of `RUNS`: what runs it.
        options: Options of the run, ready for JSON; the results depend on them and nothing else
            beside model, images, threads and versions.
        images: Number of images at most; None for all of the model's.
    """

    kind: str
    options: dict[str, Any]
    images: int | None = None

    @property
    def key(self) -> str:
        """What tells arms apart: equal ones are one arm, with the larger number of images."""
        return json.dumps([self.kind, self.options], sort_keys=True)

    @property
    def size_key(self) -> str:
        """Arms of one such key take about as long for an image, and are cut alike."""
        return f"{self.kind} {self.options.get('format', '')}".strip()

    @property
    def words(self) -> str:
        """The arm in words, for tables."""
        if self.kind == "attack":
            o = self.options
            return f"{o['method']} {o['loss']} in {o['format']}, seed {o['seed']}"
        return f"{self.kind} {', '.join(self.options['losses'])}"


@dataclass(frozen=True, slots=True)
class Job:
    """A kind of work in a spec: `[[jobs]]` with `job = NAME`.

    Attributes:
        name: Name of the job.
        keys: Keys of its table, beside `COMMON_KEYS`.
        arms: Function from its options and those of a model to arms.
        meaning: What it does, for the documentation.
    """

    name: str
    keys: tuple[Key, ...]
    arms: Callable[[Options, Options], Iterator[Arm]]
    meaning: str


def _attack_arm(
    options: Options, model: Options, loss: str, fmt: str, start: int, method: str
) -> Arm:
    return Arm(
        "attack",
        {
            "loss": loss,
            "format": fmt,
            "seed": options["seed"] + start,
            "radius": options["radius"] or model["radius"],
            "norm": options["norm"],
            "steps": options["steps"],
            "method": method,
            "box": list(model["box"]),
            "accept_probabilities": model["accept_probabilities"],
        },
    )


def _attack_arms(options: Options, model: Options) -> Iterator[Arm]:
    for fmt in options["formats"]:
        for loss in options["losses"]:
            for start in range(options["starts"]):
                yield _attack_arm(options, model, loss, fmt, start, options["method"])


def _attribution_arms(options: Options, model: Options) -> Iterator[Arm]:
    losses = (*ATTRIBUTION_LOSSES, *((LADDER_LOSS,) if options["why"] else ()))
    arms = [
        *((loss, "exact") for loss in (EXACT_LOSSES if options["exact"] == "all" else ())),
        *((loss, options["format"]) for loss in losses),
    ]
    for loss, fmt in arms:
        for start in range(options["starts"]):
            yield _attack_arm(options, model, loss, fmt, start, "pgd")


def _measure_arms(options: Options, model: Options) -> Iterator[Arm]:
    scenarios = options["scenarios"]
    yield Arm(
        "measure",
        {
            "losses": list(options["losses"]),
            "formats": list(options["formats"]),
            "scenarios": scenarios if scenarios is None else list(scenarios),
            "engine": options["engine"],
            "loss_scale": options["loss_scale"],
            "certify": options["certify"],
            "accept_probabilities": model["accept_probabilities"],
        },
    )


_RADIUS = Key("radius", POSITIVE, "radius of the ball; by default the model's own")
_NORM = Key("norm", choice(*get_args(Norm)), "norm of the ball", "linf")
_STEPS = Key("steps", whole(1), "number of gradients in each run", 100)
_SEED = Key("seed", whole(0), "seed of the first start; the others' follow", 0)
_ONE_FORMAT = Kind(f"one of {', '.join(FORMAT_NAMES)}", choice(*FORMAT_NAMES).read)

COMMON_KEYS = (
    Key("models", TEXTS, "names of the models that it is for; by default all"),
    Key("images", whole(1), "number of images, the first ones; by default the model's"),
)
JOBS = {
    job.name: job
    for job in (
        Job(
            "measure",
            (
                Key("losses", LOSSES, "losses that are measured", ("ce", "mifpe", "tmifpe")),
                Key(
                    "formats",
                    FORMATS,
                    "formats that are measured",
                    ("float16", "float32", "float64"),
                ),
                Key("scenarios", TEXTS, "names of scenarios; by default as the labels say"),
                Key("engine", choice(*ENGINE_CHOICES), "exact engine to begin with", "auto"),
                Key("loss_scale", NUMBER, "factor on the loss", 1.0),
                Key("certify", FLAG, "prove an interval for every relative error", False),
            ),
            _measure_arms,
            "measures the gradients' errors, as `fperr measure`",
        ),
        Job(
            "attack",
            (
                Key("losses", LOSSES, "losses that are ascended", ("tmifpe",)),
                Key("formats", ATTACKED_FORMATS, "formats, or exact", ("float32",)),
                Key("starts", whole(1), "number of random starts of each image", 1),
                Key("method", choice(*get_args(Method)), "method of the attack", "pgd"),
                _RADIUS, _NORM, _STEPS, _SEED,
            ),
            _attack_arms,
            "attacks with every loss in every format from every start, as `fperr attack`",
        ),
        Job(
            "attribute",
            (
                Key("format", _ONE_FORMAT, "format of network and gradient", "float32"),
                Key("exact", choice("all", "none"), "images with exact gradients", "all"),
                Key("starts", whole(1), "number of random starts of each image", 3),
                Key("why", FLAG, "tell underflow and cancellation in the loss apart", False),
                Key("search", choice("restarts"), "floor of all starts of all arms"),
                _RADIUS, _NORM, _STEPS, _SEED,
            ),
            _attribution_arms,
            "tells what a robust-accuracy gap is made of, as `fperr attribute`",
        ),
    )
}  # fmt: skip
# kind of an arm -> module and function that run it; only workers that need it load it. Arguments:
# network and images, rows of the batch, options of the arm. It returns rows with the numbers of
# their images in `sample`, and what the part's header adds.
RUNS = {
    "measure": "fperr.campaign.measure_run:measured",
    "attack": "fperr.campaign.attack_run:attacked",
}
