"""The names that help texts and shell completion list; a test compares them with the registries."""

from collections.abc import Callable, Iterable
from typing import get_args

from fperr.vocabulary import (
    ATTACK_FORMATS,
    ENGINE_CHOICES,
    FORMAT_NAMES,
    Method,
    Norm,
    ScenarioName,
)

LOSSES = (
    "ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr", "mifpe_shifted", "tmifpe_shifted", "pmifpe",
    "gama", "accurate_ce", "comp_sum", "gce", "mae",
)  # fmt: skip
FIGURES = (
    "theory", "regimes", "margins", "density", "scale-sweep", "precision", "convergence",
    "tstar-trace", "phase", "table1", "boost", "stages", "layers", "bound", "sign-map", "gpu",
    "cost",
)  # fmt: skip
NETWORKS = (
    "fashion_standard", "fashion_adversarial", "fashion_saturated", "fashion_mlp",
    "fashion_transformer", "mnist_levelsets_eps0.4", "mnist_levelsets_xent", "mnist_fastat_pgd",
    "mnist_wong_kolter", "mnist_lenet5_advtrained", "cifar_wong_kolter_small_8px",
    "mnist_lenet5_clntrained",
)  # fmt: skip
DATASETS = ("fashion_mnist_1000", "mnist_test", "cifar10_test_800")
KERNELS = ("cpu", "cpu_strided")
PICTURES = ("png", "svg", "pdf")
FORMATS: tuple[str, ...] = FORMAT_NAMES
FORMATS_OF_ATTACK: tuple[str, ...] = ATTACK_FORMATS
ENGINES: tuple[str, ...] = ENGINE_CHOICES
METHODS: tuple[str, ...] = get_args(Method)
NORMS: tuple[str, ...] = get_args(Norm)
SCENARIOS: tuple[str, ...] = get_args(ScenarioName)
EXACT_CHOICES = ("auto", "all", "sample", "none")
SEARCH_CHOICES = ("restarts", "autoattack")


def listed(names: Iterable[str]) -> str:
    """An enumeration of names, for a help text."""
    return ", ".join(names)


def completes(*names: str) -> Callable[[str], list[str]]:
    """Shell completion of one name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def completes_list(*names: str) -> Callable[[str], list[str]]:
    """Shell completion of the last of several names, comma-separated."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [
            f"{before}{comma}{name}"
            for name in names
            if name.startswith(last) and name not in taken
        ]

    return complete
