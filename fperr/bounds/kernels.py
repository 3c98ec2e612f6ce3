"""PyTorch's cross-entropy kernels, as lists of roundings, and the accuracy of their exp and log."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import torch

from fperr import storage
from fperr.errors import DamagedFileWarning
from fperr.formats import FLOAT32, Format


@dataclass(frozen=True, slots=True)
class Kernel:
    """How often each step of log_softmax, nll_loss and their backward halves rounds.

    The half formats are computed in float32 and stored in the half format; float32 and float64 are
    stored as they are computed. A count of 0 removes the step's error from the bound: right if a
    kernel does not have the step, and otherwise a negative control of the validation.

    Attributes:
        name: Name of the kernel.
        scale: Roundings of x = c z (in the storage format, before the kernel).
        shift: Roundings of d = x - max x.
        exp: Roundings of e = exp(d), and of p = exp(o).
        add: Roundings of an addition of S = sum e.
        log: Roundings of l = log S.
        store_sum, store_log: Roundings of S and l to a half format.
        output: Roundings of o = d - l.
        store_output: Roundings of o to a half format.
        product: Roundings of p times the sum of the upstream gradient, if that is not 1.
        subtract: Roundings of p - 1.
        store_gradient: Roundings of p or p - 1 to a half format.
        rescale: Roundings of v = c (p - 1) (in the storage format, after the kernel).
        underflow: Factor on half the smallest subnormal number, the least rounding error that is
            assumed.

    Example:
        >>> from fperr import bounds
        >>> [bounds.KERNELS[name].store_sum for name in ("cpu", "cuda")]
        [1.0, 0.0]
    """

    name: str
    scale: float = 1.0
    shift: float = 1.0
    exp: float = 1.0
    add: float = 1.0
    log: float = 1.0
    store_sum: float = 0.0
    store_log: float = 0.0
    output: float = 1.0
    store_output: float = 1.0
    product: float = 1.0
    subtract: float = 1.0
    store_gradient: float = 1.0
    rescale: float = 1.0
    underflow: float = 1.0


# The class dimension last, on a CPU: sum and logarithm are stored in the half format, too. Another
# dimension, and every CUDA kernel: one rounding to the half format on the way out.
KERNELS = {
    k.name: k
    for k in (Kernel("cpu", store_sum=1.0, store_log=1.0), Kernel("cpu_strided"), Kernel("cuda"))
}
"""The kernels by name: the CPU's with the classes last, the CPU's with them elsewhere, and CUDA's.

Example:
    >>> from fperr import bounds
    >>> list(bounds.KERNELS)
    ['cpu', 'cpu_strided', 'cuda']
"""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The largest errors of exp on [-inf, 0] and of log on [1, largest_log], as kernels compute.

    Attributes:
        exp_ulps, log_ulps: Errors in units in the last place of the true value.
        largest_log: Largest argument at which log was tried.
        is_exhaustive: Whether every number was tried; otherwise the bound is conditional on
            `source`.
        source: Origin of the errors.

    Example:
        >>> from fperr import bounds
        >>> accuracy = bounds.Accuracy(0.51, 0.52, 1024.0, True, "a sweep")
        >>> accuracy.log_of(10), accuracy.log_of(1000)  # sums over 1000 classes were not tried
        (0.52, 1.0)
    """

    exp_ulps: float
    log_ulps: float
    largest_log: float
    is_exhaustive: bool
    source: str

    def log_of(self, classes: int) -> float:
        """The error of log in ulps, if a sum over that many classes is its argument.

        It is the documented error if such sums may exceed the largest argument that was tried.

        Args:
            classes: Number of classes, K.
        """
        is_known = 2 * classes <= self.largest_log
        return self.log_ulps if is_known else max(self.log_ulps, DOCUMENTED.log_ulps)


# SLEEF's u10 functions (x86, Arm). The kernels of log_softmax may use others: only a sweep through
# them can tell.
DOCUMENTED = Accuracy(1.0, 1.0, float("inf"), False, "documented: at most 1.0 ulp")
# CUDA's expf has 2 ulps over its full range; with 1, an H200's logit gradients exceed their bounds
DOCUMENTED_CUDA = Accuracy(2.0, 1.0, float("inf"), False, "documented: at most 2.0 ulps of exp")


def kernel_named(kernel: str | Kernel) -> Kernel:
    """The kernel of that name, or the `Kernel` itself.

    Raises:
        ValueError: no such kernel; lists those that exist.
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: expected one of {', '.join(KERNELS)}")
    return KERNELS[kernel]


def working_format(fmt: Format) -> Format:
    """The format in which the kernels compute: float32 for the half formats."""
    return FLOAT32 if fmt.is_half else fmt


def certificate_file(device: torch.device) -> Path:
    """The file in which `fperr validate kernels` stores its results for this torch and device."""
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    name = f"kernels-{torch.__version__}-{device.type}-{where}".replace(" ", "-")
    return platformdirs.user_cache_path("fperr") / f"{name}.json"


def documented(fmt: Format, kernel: Kernel, device: torch.device) -> Accuracy:
    """The documented accuracy of exp and log of a kernel, or of the kernels of a device.

    Args:
        fmt: Format of the logits.
        kernel: Model of the kernel; the one called `"cuda"` is CUDA's, wherever the logits are.
        device: Device of the logits.
    """
    is_cuda = kernel.name == "cuda" or device.type == "cuda"
    return DOCUMENTED_CUDA if is_cuda and working_format(fmt) == FLOAT32 else DOCUMENTED


def accuracy(fmt: Format, device: torch.device, kernel: Kernel | None = None) -> Accuracy:
    """The accuracy of the exp and log that PyTorch uses for a format on a device.

    It is the accuracy that `fperr validate kernels` swept on this machine, if it was run, and else
    the documented one. A certificate without a digest is not used; a `DamagedFileWarning` says so.

    Args:
        fmt: Format of the logits.
        device: Device on which the loss is computed.
        kernel: Model of the kernel; None: the device's own. One of CUDA's for a device that is
            none takes what is documented of CUDA.

    Example:
        >>> import torch
        >>> from fperr import bounds, formats
        >>> accuracy = bounds.accuracy(formats.FLOAT32, torch.device("cpu"))
        >>> accuracy.exp_ulps > 0
        True
    """
    without_sweep = documented(fmt, KERNELS["cpu"] if kernel is None else kernel, device)
    file = certificate_file(device)
    is_elsewhere = kernel is not None and kernel.name == "cuda" and device.type != "cuda"
    if is_elsewhere or not file.is_file():
        return without_sweep
    content = file.read_bytes()
    if not storage.is_whole(content):
        warnings.warn(
            f"{file} is damaged, or of an older fperr: the documented accuracy of exp and log is "
            "used instead. Run `fperr validate kernels` again, or remove it",
            DamagedFileWarning,
            stacklevel=2,
        )
        return without_sweep
    certificate = json.loads(content)
    return Accuracy(**certificate[working_format(fmt).name])


def keep(accuracy_by_format: dict[str, Accuracy], device: torch.device) -> Path:
    """Store the results of a sweep for `accuracy`, valid until torch or the device changes.

    Args:
        accuracy_by_format: Accuracies by the name of the format.
        device: Device that was swept.

    Returns:
        The file.

    Raises:
        ValueError: the folder of the user's cache cannot be made.
        StorageError: nothing can be written in it.
    """
    file = certificate_file(device)
    storage.prepare(file.parent)
    tables = {name: asdict(accuracy) for name, accuracy in accuracy_by_format.items()}
    content = tables | {"seal": storage.SEAL}
    storage.write(file, storage.sealed(json.dumps(content, indent=1).encode()))
    return file
