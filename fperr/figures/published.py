"""The published table of robust accuracies, with the source of each row's network.

The numbers are those of Yu and Xu, CVPR 2023, main table: PGD with 100 steps and one start, in per
cent. The numbers of the table in arXiv 2507.22428 are not public in a form that can be copied.
"""

from dataclasses import dataclass

COLUMNS = ("clean", "ce", "cw", "dlr", "gama", "mifpe")
_ROBUSTBENCH = "RobustBench, cifar10, Linf: "


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of the published table.

    Attributes:
        defence: Name of the defence, as the paper has it.
        architecture: Name of the architecture, as the paper has it.
        dataset: Data set, "MNIST" (attacked at linf 0.3) or "CIFAR-10" (at linf 8/255).
        accuracies: Accuracies in per cent, in the order of `COLUMNS`.
        source: Where the network can be had.
        network: Name of the network in the zoo; None if it is not there.
        remark: How the zoo's network differs from the paper's.
    """

    defence: str
    architecture: str
    dataset: str
    accuracies: tuple[float, ...]
    source: str
    network: str | None = None
    remark: str = ""


def _mnist(
    defence: str,
    architecture: str,
    accuracies: tuple[float, ...],
    source: str,
    network: str | None = None,
    remark: str = "",
) -> PublishedRow:
    return PublishedRow(defence, architecture, "MNIST", accuracies, source, network, remark)


def _cifar(defence: str, architecture: str, model: str, *accuracies: float) -> PublishedRow:
    return PublishedRow(defence, architecture, "CIFAR-10", accuracies, _ROBUSTBENCH + model)


_MMA = "github.com/BorealisAI/mma_training"
ROWS = (
    _mnist(
        "Uncovering limits",
        "WRN-28-10",
        (99.26, 96.55, 96.64, 96.71, 96.69, 96.53),
        "github.com/google-deepmind/deepmind-research, adversarial_robustness",
    ),
    _mnist(
        "MMA training †", "LeNet5Madry", (98.98, 95.66, 95.60, 95.56, 95.96, 95.50), _MMA
    ),
    _mnist("MMA training", "LeNet5Madry", (98.95, 95.09, 95.33, 95.59, 95.74, 94.88), _MMA),
    _mnist(
        "Neural level sets",
        "SmallCNN",
        (99.35, 99.28, 94.68, 95.09, 99.29, 94.67),
        "github.com/matanatz/ControllingNeuralLevelsets",
        "mnist_levelsets_eps0.4",
        "of the published repository",
    ),
    _mnist(
        "TRADES",
        "SmallCNN",
        (99.48, 93.69, 93.88, 94.49, 93.82, 93.67),
        "github.com/yaodongyu/TRADES, model_mnist_smallcnn.pt",
    ),
    _mnist(
        "Robust optimization",
        "SmallCNN",
        (99.35, 93.06, 93.19, 93.63, 93.39, 92.88),
        "github.com/MadryLab/mnist_challenge (TensorFlow)",
    ),
    _mnist(
        "Fast adversarial training",
        "SmallCNN",
        (98.50, 86.82, 86.96, 87.42, 87.62, 86.57),
        "github.com/locuslab/fast_adversarial",
        "mnist_fastat_pgd",
        "of the published repository, a ConvSmall",
    ),
    _cifar(
        "Uncovering limits †", "WRN-70-16", "Gowal2020Uncovering_70_16_extra",
        91.10, 67.96, 66.70, 66.78, 66.08, 65.96,
    ),
    _cifar(
        "Fixing data augmentation", "WRN-106-16", "Rebuffi2021Fixing_106_16_cutmix_ddpm",
        88.50, 67.57, 65.55, 65.61, 64.94, 64.75,
    ),
    _cifar(
        "Fixing data augmentation", "WRN-70-16", "Rebuffi2021Fixing_70_16_cutmix_ddpm",
        88.54, 67.27, 65.23, 65.32, 64.57, 64.46,
    ),
    _cifar(
        "Proper definition", "WRN-70-16", "Pang2022Robustness_WRN70_16",
        89.01, 66.66, 63.94, 64.01, 63.65, 63.49,
    ),
    _cifar(
        "Uncovering limits †", "WRN-28-10", "Gowal2020Uncovering_28_10_extra",
        89.48, 65.59, 63.62, 63.82, 63.05, 62.96,
    ),
    _cifar(
        "Proper definition", "WRN-28-10", "Pang2022Robustness_WRN28_10",
        88.61, 64.66, 61.55, 61.62, 61.19, 61.12,
    ),
    _cifar(
        "Adversarial weight perturbation †", "WRN-28-10", "Wu2020Adversarial_extra",
        88.25, 63.18, 60.51, 60.60, 60.18, 60.09,
    ),
    _cifar(
        "Unlabeled data †", "WRN-28-10", "Carmon2019Unlabeled",
        89.69, 61.60, 60.47, 60.67, 59.82, 59.72,
    ),
    _cifar("HYDRA †", "WRN-28-10", "Sehwag2020Hydra", 88.98, 59.53, 58.21, 58.30, 57.52, 57.38),
    _cifar(
        "Misclassification-aware", "WRN-28-10", "Wang2020Improving",
        87.50, 61.60, 58.03, 58.73, 57.20, 56.88,
    ),
    _cifar(
        "Pre-training †", "WRN-28-10", "Hendrycks2019Using",
        87.11, 57.07, 56.27, 57.07, 55.22, 55.10,
    ),
    _cifar(
        "Hypersphere embedding", "WRN-34-20", "Pang2020Boosting",
        85.14, 61.43, 55.35, 56.21, 54.37, 53.85,
    ),
    _cifar(
        "Overfitting", "WRN-34-20", "Rice2020Overfitting", 85.34, 56.85, 55.22, 55.97, 53.87, 53.62
    ),
    _cifar(
        "Self-adaptive training ‡", "WRN-34-10", "Huang2020Self",
        83.48, 56.12, 54.30, 54.73, 53.64, 53.48,
    ),
    _cifar(
        "TRADES ‡", "WRN-34-10", "Zhang2019Theoretically", 84.92, 55.21, 53.94, 54.11, 53.38, 53.22
    ),
    _cifar(
        "Robustness library", "RN-50", "Engstrom2019Robustness",
        87.03, 51.56, 52.07, 52.81, 50.04, 49.84,
    ),
    PublishedRow(
        "Neural level sets ‡", "RN-18", "CIFAR-10", (81.30, 79.12, 40.07, 45.10, 79.69, 40.06),
        "github.com/matanatz/ControllingNeuralLevelsets",
    ),
    _cifar(
        "YOPO", "WRN-34-10", "Zhang2019You", 87.20, 46.05, 47.02, 47.55, 45.30, 45.19
    ),
    _cifar(
        "Fast adversarial training", "RN-18", "Wong2020Fast",
        83.34, 45.75, 45.81, 46.89, 43.71, 43.57,
    ),
)  # fmt: skip
