"""PyTorch's cross-entropy kernels, as lists of roundings, and the accuracy of their exp and log."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import torch

from fperr import storage
from fperr.errors import DamagedFileWarning
from fperr.formats import BFLOAT16, FLOAT16, FLOAT32, Format


@dataclass(frozen=True, slots=True)
class Kernel:
    """How often each step of log_softmax, nll_loss and their backward halves rounds.

    The half formats are computed in float32 and stored in the half format; the other two are
    stored as they are computed. A count of 0 takes the step's error out of the bound: right where
    a kernel does not have the step, a control of the validation elsewhere.

    Attributes:
        name: spelling.
        scale: x = c z (in the storage format, before the kernel).
        shift: d = x - max x.
        exp: e = exp(d), and p = exp(o).
        add: an addition of S = sum e.
        log: l = log S.
        store_sum, store_log: S and l are stored in a half format.
        output: o = d - l.
        store_output: o is stored in a half format.
        product: p times the sum of the upstream gradient, where that is not 1.
        subtract: p - 1.
        store_gradient: p or p - 1 is stored in a half format.
        rescale: v = c (p - 1) (in the storage format, after the kernel).
        underflow: what is lost below the smallest subnormal number.
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


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The largest errors of exp on [-inf, 0] and of log on [1, largest_log], as kernels compute.

    Attributes:
        exp_ulps, log_ulps: in units in the last place of the true value.
        largest_log: the argument up to which log was looked at.
        is_exhaustive: every number was tried; otherwise the bound is conditional on `source`.
        source: where the errors come from.
    """

    exp_ulps: float
    log_ulps: float
    largest_log: float
    is_exhaustive: bool
    source: str

    def log_of(self, classes: int) -> float:
        """`log_ulps`, or the documented ones where sums may exceed what was looked at."""
        is_known = 2 * classes <= self.largest_log
        return self.log_ulps if is_known else max(self.log_ulps, DOCUMENTED.log_ulps)


# SLEEF's u10 functions (x86, Arm) and CUDA's expf, logf, exp and log. The kernels of log_softmax
# may use others: only a sweep through them can tell.
DOCUMENTED = Accuracy(1.0, 1.0, float("inf"), False, "documented: at most 1.0 ulp")


def kernel_named(kernel: str | Kernel) -> Kernel:
    """The kernel model called so, or itself.

    Raises:
        ValueError: no such kernel; lists the known ones.
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: expected one of {', '.join(KERNELS)}")
    return KERNELS[kernel]


def working_format(fmt: Format) -> Format:
    """In what the kernels compute: float32 for the half formats."""
    return FLOAT32 if fmt in (FLOAT16, BFLOAT16) else fmt


def certificate_file(device: torch.device) -> Path:
    """Where `fperr validate kernels` keeps what it found for this torch and this CPU or GPU."""
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    name = f"kernels-{torch.__version__}-{device.type}-{where}".replace(" ", "-")
    return platformdirs.user_cache_path("fperr") / f"{name}.json"


def accuracy(fmt: Format, device: torch.device) -> Accuracy:
    """Of the exp and log that serve this format: swept on this machine, else as documented.

    A certificate without a digest of its own is not used; a `DamagedFileWarning` says so.
    """
    file = certificate_file(device)
    if not file.is_file():
        return DOCUMENTED
    content = file.read_bytes()
    if not storage.is_whole(content):
        warnings.warn(
            f"{file} is damaged, or of an older fperr: the documented accuracy of exp and log is "
            "used instead. Run `fperr validate kernels` again, or remove it",
            DamagedFileWarning,
            stacklevel=2,
        )
        return DOCUMENTED
    certificate = json.loads(content)
    return Accuracy(**certificate[working_format(fmt).name])


def keep(accuracy_by_format: dict[str, Accuracy], device: torch.device) -> Path:
    """Store what a sweep found, by format: for `accuracy`, until torch or the device changes.

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
