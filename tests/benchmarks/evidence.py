"""`make evidence`: what the gaps of known networks are made of, in float32 (`--half`: float16,
`--format`: any other).

It says how long it takes before it begins, writes as it goes, and goes on where it was cut off.
docs/findings.md holds its tables. Networks whose files FPERR_DATA does not have are left out, and
named.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

import fperr
from fperr import data, zoo
from fperr.attribution.arms import Setting
from fperr.attribution.forecast import forecast
from fperr.errors import FperrError
from fperr.figures.attacks import RADII
from fperr.networks.model import usable_model

STEPS, STARTS, ARMS = 50, 3, 5
# network -> images; in the order in which they are attacked
IMAGES = {
    "fashion_saturated": 1000,
    "mnist_levelsets_eps0.4": 1000,
    "fashion_standard": 1000,
    "mnist_fastat_pgd": 2000,
    "fashion_adversarial": 1000,
    "mnist_lenet5_advtrained": 500,
}
IN_FLOAT8 = {"fashion_mlp": 200, "fashion_transformer": 200}  # for `make format-outcomes`
# exact gradients of convolutional networks take hours for so many images
WHOLLY_EXACT = ("fashion_saturated", "fashion_standard", "fashion_adversarial")
HALF_IMAGES = 200
MEASURED = 100  # images whose clean gradients are measured
COLUMNS = ("numerical", "loss", "search", "gap")


@dataclass(frozen=True, slots=True)
class Study:
    """What the networks have in common: format, steps, device, and how many gradients are exact.

    `exact` is "all", "sample", or "auto": all where it does not take hours on one core.
    """

    format: str
    steps: int
    device: str
    exact: str
    out: Path

    def exactness(self, name: str) -> str:
        """How many images of a network get exact gradients."""
        if self.exact != "auto":
            return self.exact
        return "all" if name in WHOLLY_EXACT else "sample"


def subjects(
    names: list[str], most: int | None
) -> dict[str, tuple[torch.nn.Module, data.Images, float]]:
    """Networks, images and radii, of the networks that are there; at most `most` images of each."""
    found = {}
    for name, n in (IMAGES | IN_FLOAT8).items():
        if name not in names:
            continue
        try:
            images = data.images_named(zoo.entry(name).dataset)
            model = zoo.load(name)
        except FperrError as fault:
            print(f"left out: {name} ({fault})")
            continue
        radius = RADII.get(name, RADII.get(images.name))
        found[name] = model, images.first(n if most is None else min(n, most)), radius
    return found


def attributed(
    name: str, model: torch.nn.Module, images: data.Images, radius: float, study: Study,
    *, targeted: bool,
) -> fperr.Attribution:  # fmt: skip
    """The attribution of a network, kept in a folder of its own."""
    targets = (images.y + 1) % 10 if targeted else None
    kind = "targeted" if targeted else "untargeted"
    return fperr.attribute(
        model, images.x, images.y, radius=radius, steps=study.steps, starts=STARTS,
        format=study.format, targets=targets, exact=study.exactness(name), search="restarts",
        why=not targeted, device=study.device,
        out=study.out / f"{name}-{kind}-{study.format}-{study.steps}",
    )  # fmt: skip


def row(name: str, n: int, result: fperr.Attribution) -> dict[str, object]:
    """A line of the table."""
    judged = result.frame[result.frame["is_judged"]]
    numerical = result.part("numerical").difference
    discordant = judged[judged["ce"] != judged["stable_ce"]]
    agree = int((discordant["stable_ce"] == discordant["exact_ce"]).sum())
    stand_in = result.stand_in
    return {
        "network": f"{name}, {n}",
        "CE": f"{100 * judged['ce'].mean():.1f}",
        **{part: str(result.part(part).difference) for part in COLUMNS},
        "less than 0.5": "yes" if numerical.is_equivalent else "",
        "only without : with rounding": f"{numerical.only_first} : {numerical.only_second}",
        "stable CE as exact, where CE differs": f"{agree} of {len(discordant)}",
        "and at random": "all"
        if stand_in is None
        else f"{stand_in.random - stand_in.random_differing} of {stand_in.random}",
        "never a gradient": int(judged["never_had_gradient"].sum()),
        "not judged": int((~result.frame["is_judged"]).sum()),
    }


def clean_gradients(
    name: str, model: torch.nn.Module, images: data.Images, study: Study
) -> dict[str, object]:
    """What cross-entropy's gradients at clean images say: shares in per cent, and a verdict.

    Of the images that are classified correctly: the others need no attack.
    """
    few = images.first(min(MEASURED, len(images.x)))
    report = fperr.measure(
        model, few.x, few.y, losses=["ce"], formats=[study.format], progress=False, name=name,
        device=study.device,
    )  # fmt: skip
    frame = report.frame[report.frame["delta"].notna()]
    frame = frame[frame["scenario"] == "untargeted_unsuccessful"]
    dead = frame["is_dead"].fillna(False).astype(bool)
    shares = {
        "dead": dead,
        "step gain < 0.1": frame["step_gain"] < 0.1,
        "< 0.5": frame["step_gain"] < 0.5,
        "< 0.9": frame["step_gain"] < 0.9,
        "delta > 0.1": frame["delta"] > 0.1,
    }
    (verdict,) = report.verdicts("ce", study.format).values()
    return {
        "network": f"{name}, {len(frame)}",
        **{column: f"{100 * flags.mean():.0f}" for column, flags in shares.items()},
        "verdict": verdict.state,
    }


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="float32", help="the format, e.g. float32@cuda")
    parser.add_argument("--half", action="store_true", help=f"float16, {HALF_IMAGES} images")
    parser.add_argument("--images", type=int, help="at most so many of each network")
    parser.add_argument("--networks", default=",".join(IMAGES), help="names, comma-separated")
    parser.add_argument("--clean", action="store_true", help="clean gradients alone")
    parser.add_argument("--goals", default="untargeted,targeted", help="one of them, or both")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact", default="auto", choices=["auto", "all", "sample"])
    parser.add_argument("--out", type=Path, default=Path("out/evidence"))
    given = parser.parse_args()
    if given.half:
        given.format, given.images = "float16", given.images or HALF_IMAGES
    study = Study(given.format, given.steps, given.device, given.exact, given.out)
    goals = given.goals.split(",")
    chosen = subjects(given.networks.split(","), given.images)
    total = 0.0
    for name, (model, images, radius) in chosen.items():
        setting = Setting(
            usable_model(model, study.device, None), images.x.to(study.device),
            images.y.to(study.device), None, radius, "linf", (0.0, 1.0), study.steps, STARTS,
            study.format, 0, 250, False,
        )  # fmt: skip
        times = forecast(setting, ARMS + 1)
        exact = study.exactness(name)
        total += len(goals) * (times.in_format + times.share(exact) * times.exact)
        words = times.describe(exact, with_autoattack=False)
        print(f"{name}: {words} for each of {' and '.join(goals)}", flush=True)
    print(f"about {total / 3600:.1f} h in all", flush=True)
    clean = []
    for name, (model, images, _) in chosen.items():
        clean.append(clean_gradients(name, model, images, study))
    print(pd.DataFrame(clean).to_markdown(index=False), flush=True)
    if given.clean:
        return
    for goal in goals:
        rows = []
        for name, (model, images, radius) in tqdm(chosen.items(), disable=None):
            result = attributed(name, model, images, radius, study, targeted=goal == "targeted")
            rows.append(row(name, len(images.x), result))
            print(f"{name}: {result.sentence}", *result.remarks, sep="\n  ", flush=True)
            print(result.summary().to_string(), flush=True)
        print(goal)
        print(pd.DataFrame(rows).to_markdown(index=False), flush=True)


if __name__ == "__main__":
    main()
