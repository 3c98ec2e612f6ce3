"""`make repair-table`: five libraries' attacks as they are, and inside `fperr.repaired`.

Robust accuracy in percent, of the first images. It takes about a quarter of an hour; the table
stands in docs/repair.md.
"""

import argparse
import contextlib
import time
import warnings
from collections.abc import Iterator

import torch
from torch import nn

import fperr
from fperr import data, zoo
from tests.makers.libraries import Attack, attacks

STEPS = 20
# network -> radius: where an attack has something to decide. A step is a fifth of it.
RADII = {"fashion_saturated": 0.05, "fashion_standard": 0.01, "fashion_adversarial": 0.1}
ATTACKS = (
    "torchattacks PGD",
    "foolbox LinfPGD",
    "ART PGD",
    "adv_lib PGD",
    "pyautoattack APGD-CE",
    "torchattacks APGD",
    "ART APGD",
    "adv_lib APGD",
)
# column -> the arguments of `repaired`; None: the attack as it is
COLUMNS: dict[str, tuple[str, str] | None] = {
    "as it is": None,
    "cross_entropy": ("cross_entropy", "cross_entropy"),
    "stable_ce": ("stable_ce", "cross_entropy"),
    "mifpe": ("mifpe", "cross_entropy"),
    "tmifpe": ("tmifpe", "cross_entropy"),
    "stable_ce, its value": ("stable_ce", "stable_ce"),
    "mifpe, value of stable_ce": ("mifpe", "stable_ce"),
}


@contextlib.contextmanager
def repair(arguments: tuple[str, str] | None) -> Iterator[None]:
    """The block of a column."""
    if arguments is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of calls that are left as they are
        with fperr.repaired(arguments[0], value=arguments[1]):
            yield


def robust_accuracy(attack: Attack, model: nn.Module, images: data.Images, column: str) -> float:
    """The share of images, in percent, that are right before and after the attack."""
    torch.manual_seed(0)
    with repair(COLUMNS[column]):
        adversarial = attack(model, images.x.clone(), images.y.clone())
    with torch.no_grad():
        return 100 * float((model(adversarial).argmax(1) == images.y).float().mean())


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=1000)
    images = data.fashion_mnist_1000().first(parser.parse_args().n)
    print(f"| network, radius | attack | {' | '.join(COLUMNS)} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    begun = time.time()
    for network, radius in RADII.items():
        model = zoo.load(network)
        for name in ATTACKS:
            attack = attacks(radius, STEPS, radius / 5)[name]
            cells = [f"{robust_accuracy(attack, model, images, c):.1f}" for c in COLUMNS]
            print(f"| {network}, {radius} | {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{len(images.x)} images, {time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
