"""Train a packaged network: `python -m fperr.zoo.train fashion_standard`."""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

from fperr.data import Images, fashion_mnist
from fperr.zoo.registry import entry

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe for training with Adam, a one-cycle learning rate and no augmentation.

    Attributes:
        objective: Objective `"cross_entropy"`, or `"margin"`: the hinge
            max(0, wanted_margin - margin).
        epochs: Number of passes over the training images.
        batch_size: Number of images in a step.
        peak_learning_rate: Largest learning rate of the one-cycle schedule.
        seed: Seed of the initial weights, the order of the images and the random starts.
        radius: Radius, in the maximum norm, of the PGD attack on the training images; 0 for none.
        wanted_margin: Margin from which on the margin objective is 0.
    """

    objective: Literal["cross_entropy", "margin"]
    epochs: int
    batch_size: int
    peak_learning_rate: float
    seed: int
    radius: float = 0.0
    wanted_margin: float = 0.0


RECIPES = {
    "fashion_standard": Recipe("cross_entropy", 20, 128, 3e-3, seed=0),
    "fashion_adversarial": Recipe("cross_entropy", 25, 128, 3e-3, seed=0, radius=0.1),
    "fashion_saturated": Recipe("margin", 40, 128, 3e-3, seed=0, wanted_margin=400.0),
    "fashion_mlp": Recipe("cross_entropy", 20, 128, 3e-3, seed=0, radius=0.05),
    "fashion_transformer": Recipe("cross_entropy", 15, 128, 2e-3, seed=0),
}
PGD_STEPS = 10


def train(name: str, images: Images, recipe: Recipe) -> nn.Module:
    """Train the network `name` on `images`; arguments and torch's build determine the result."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = entry(name).architecture()
    optimiser = torch.optim.Adam(model.parameters())
    steps = -(-len(images.x) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_learning_rate, total_steps=recipe.epochs * steps
    )
    for _ in trange(recipe.epochs, desc=name, unit="epoch"):
        for batch in torch.randperm(len(images.x), generator=generator).split(recipe.batch_size):
            x, y = images.x[batch], images.y[batch]
            if recipe.radius:
                x = attacked(model, x, y, recipe.radius, generator)
            optimiser.zero_grad()
            objective(model(x), y, recipe).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def objective(logits: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """The objective to minimise, averaged over the batch."""
    if recipe.objective == "cross_entropy":
        return cross_entropy(logits, y)
    label_logits = logits.gather(1, y[:, None]).squeeze(1)
    best_other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (recipe.wanted_margin - (label_logits - best_other)).clamp(min=0).mean()


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """Attack x with PGD on cross-entropy from a random start: images in [0, 1] within `radius`."""
    start = torch.rand(x.shape, generator=generator) * 2 - 1
    moved = (x + radius * start).clamp(0, 1)
    for _ in range(PGD_STEPS):
        leaf = moved.requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(leaf), y), leaf)
        moved = leaf.detach() + 2.5 * radius / PGD_STEPS * g.sign()
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(0, 1)
    return moved


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (n, K) of x (n, ...), in batches of 1,000."""
    return torch.cat([model(batch) for batch in x.split(1000)])


def describe(model: nn.Module, images: Images) -> dict[str, object]:
    """Describe a network for its card: clean accuracy in per cent, quantiles of the margin."""
    logits = logits_of(model, images.x)
    top = logits.topk(2).values.double()
    quantiles = torch.tensor([0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0], dtype=torch.float64)
    margins = (top[:, 0] - top[:, 1]).quantile(quantiles)
    return {
        "evaluated_on": f"{images.name}, {len(images.x)} images",
        "clean_accuracy_percent": round(
            100 * float((logits.argmax(1) == images.y).double().mean()), 2
        ),
        "margin_quantiles": {
            f"{q:g}": round(m, 2) for q, m in zip(quantiles.tolist(), margins.tolist(), strict=True)
        },
    }


def main() -> None:
    """Train a network, and write its weights and its card."""
    parser = argparse.ArgumentParser(prog="python -m fperr.zoo.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, help="folder of the four Fashion-MNIST files")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write to")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    train_images = fashion_mnist("train", arguments.data)
    test_images = fashion_mnist("t10k", arguments.data)
    started = time.monotonic()
    model = train(arguments.name, train_images, recipe)
    card = {
        "name": arguments.name,
        **describe(model, test_images),
        "trained_on": f"{train_images.name}, {len(train_images.x)} images",
        "recipe": {"optimiser": "Adam, one-cycle learning rate", **asdict(recipe)},
        "training_minutes": round((time.monotonic() - started) / 60, 1),
        "torch": torch.__version__,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out / f"{arguments.name}.safetensors")
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
