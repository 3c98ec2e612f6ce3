"""What a caller may have set, what a public function may change, and the public functions."""

import inspect
import logging
import pickle
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import flint
import matplotlib as mpl
import mpmath
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, backends, nn, overrides
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import fperr
from fperr import bounds, data, exact, validation, zoo
from fperr.attacks import attack_in_batches
from fperr.formats import FLOAT16
from fperr.measurement import estimate

Door = Callable[[nn.Module, Tensor, Tensor], Any]
_SMALL = {"losses": ("ce",), "formats": ("float16",), "progress": False}


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.eval()


def digits() -> tuple[Tensor, Tensor]:
    """Two real images, every fourth pixel of them."""
    images = data.fashion_mnist_1000()
    return images.x[:2, :, ::4, ::4].clone(), images.y[:2].clone()


# What a caller may have set


class Watching(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def assigned(setter: Callable[[Any], object], getter: Callable[[], Any], value: Any):
    before = getter()
    setter(value)
    try:
        yield
    finally:
        setter(before)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return assigned(torch.set_default_dtype, torch.get_default_dtype, dtype)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def attribute(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    return assigned(lambda v: setattr(owner, name, v), lambda: getattr(owner, name), value)


@contextmanager
def other_generators() -> Iterator[None]:
    """Other seeds, a normal number that waits, and another of NumPy's algorithms."""
    mtrand = np.random.mtrand
    before = random.getstate(), mtrand.get_bit_generator(), np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices=[]):
        random.seed(5)
        torch.manual_seed(7)
        mtrand.set_bit_generator(np.random.PCG64(3))
        np.random.standard_normal()
        random.gauss(0, 1)
        try:
            yield
        finally:
            random.setstate(before[0])
            mtrand.set_bit_generator(before[1])
            np.random.set_state(before[2])


@contextmanager
def all_at_once() -> Iterator[None]:
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        default_dtype(torch.float16),
        torch.device("meta"),
        np.errstate(all="raise"),
        attribute(flint.ctx, "prec", 4),
        other_generators(),
    ):
        yield


@contextmanager
def silent_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


EQUAL: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default float16": lambda: default_dtype(torch.float16),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
    "device meta": lambda: torch.device("meta"),
    "default device meta": default_device,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: assigned(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "float32 products": lambda: assigned(
        torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, "medium"
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "flint 4 bits": lambda: attribute(flint.ctx, "prec", 4),
    "flint 300 bits": lambda: attribute(flint.ctx, "prec", 300),
    "flint threads": lambda: attribute(flint.ctx, "threads", 2),
    "mpmath 3 digits": lambda: mpmath.workdps(3),
    "generators": other_generators,
    "no warnings": silent_warnings,
    "all at once": all_at_once,
}
# walked over by the slow functions and the slow tests alone: others are like them
TWINS = (
    "autocast float16",
    "default bfloat16",
    "device meta",
    "float32 products",
    "flint 300 bits",
    "no warnings",
)
NAMED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "saved tensors": (
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.float()),
        "saved_tensors_hooks",
    ),
    "on the CPU": (torch.autograd.graph.save_on_cpu, "save_on_cpu"),
    "function mode": (Watching, r"Watching \(a TorchFunctionMode\)"),
    "dispatch mode": (Dispatching, r"Dispatching \(a TorchDispatchMode\)"),
}


# What a public function may change


def everywhere() -> dict[str, Any]:
    """What belongs to the process and to this thread."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    loggers = logging.Logger.manager.loggerDict.values()
    found: dict[str, Any] = {
        "random": random.getstate(),
        "numpy generator": (
            id(np.random.mtrand.get_bit_generator()),
            pickle.dumps(np.random.get_state(legacy=False)),
        ),
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "function modes": [*map(id, overrides._get_current_function_mode_stack())],
        "dispatch modes": [*map(id, _get_current_dispatch_mode_stack())],
        "saved tensors": None if hooks is None else [*map(id, hooks)],
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "threads": torch.get_num_threads(),
        "flushes": not bool(torch.tensor(2.0**-126, dtype=torch.float32, device="cpu") * 0.5 > 0),
        "float32 products": torch.get_float32_matmul_precision(),
        "mha": backends.mha.get_fastpath_enabled(),
        "numpy errors": np.geterr(),
        "flint": [getattr(flint.ctx, n) for n in ("prec", "threads", "cap", "pretty", "unicode")],
        "mpmath": (mpmath.mp.prec, mpmath.iv.prec),
        "matplotlib": dict(mpl.rcParams),
        "warnings": list(warnings.filters),
        "logging": logging.root.level,
        "loggers": {x.name: x.level for x in loggers if isinstance(x, logging.Logger) if x.level},
    }
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        found[f"attention {kind}"] = getattr(backends.cuda, f"{kind}_sdp_enabled")()
    for owner in ("cuda.matmul", "cudnn.conv", "cudnn", "mkldnn.matmul", "mkldnn.conv"):
        holder: Any = backends
        for part in owner.split("."):
            holder = getattr(holder, part)
        for name in ("fp32_precision", "enabled", "benchmark", "deterministic"):
            found[f"{owner}.{name}"] = getattr(holder, name, None)
    for device in ("cpu", "cuda"):
        found[f"autocast {device}"] = (
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
            torch.is_autocast_cache_enabled(),
        )
    return found


def belongings(model: nn.Module, *tensors: Tensor) -> dict[str, Any]:
    """Of a caller's model and tensors."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [v for k, v in vars(module).items() if "hooks" in k and v is not None]
        attributes = sorted(vars(module))
        found[name] = module.training, [list(h) for h in hooks], attributes
    for name, tensor in [
        *model.named_parameters(),
        *model.named_buffers(),
        *((str(i), t) for i, t in enumerate(tensors)),
    ]:
        gradient = None if not tensor.is_leaf or tensor.grad is None else content(tensor.grad)
        found[f"tensor {name}"] = content(tensor), tensor.requires_grad, gradient
        found[f"hooks {name}"] = list(tensor._backward_hooks or {})
    return found


def content(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()


def comparable(found: Any) -> Any:
    """The same for equal results, bit by bit."""
    if isinstance(found, Tensor):
        return content(found)
    if isinstance(found, pd.DataFrame):
        return [(name, str(s.dtype), [repr(v) for v in s]) for name, s in found.items()]
    if isinstance(found, Figure):
        return [
            (np.asarray(c.get_offsets()).tobytes(), np.asarray(c.get_facecolor()).tobytes())
            for axis in found.axes
            for c in axis.collections
        ] + [np.asarray(line.get_xydata()).tobytes() for a in found.axes for line in a.lines]
    if isinstance(found, np.ndarray):
        return [repr(v) for v in found.ravel().tolist()]
    if isinstance(found, dict):
        return {key: comparable(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [comparable(value) for value in found]
    if hasattr(found, "__dataclass_fields__"):
        return [comparable(getattr(found, name)) for name in found.__dataclass_fields__]
    return repr(found)


# The public functions


@dataclass(frozen=True)
class Spent:
    """A report and a trace, made once: what they draw is looked at, not how they came about."""

    report: fperr.Report
    layers: fperr.LayerReport
    trace: fperr.Trace


def _recorded(model: nn.Module, x: Tensor, y: Tensor) -> fperr.Trace:
    options = {"losses": ("ce",), "formats": ("float16",), "every": 2, "samples": 1}
    with fperr.record(model, x, y, **options) as trace:
        fperr.attack(model, x, y, radius=0.1, steps=3)
    return trace


def spent() -> Spent:
    model, (x, y) = network(), digits()
    report = fperr.measure(model, x, y, engine="ball", **_SMALL)
    layers = fperr.trace_layers(model, x, y, progress=False)
    return Spent(report, layers, _recorded(model, x, y))


def _batches(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return attack_in_batches(model, x, y, f"{folder}/attack", batch_size=1, radius=0.1, steps=2)


def _gradient(engine: str) -> Door:
    def door(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        v = (y[:, None] == torch.arange(10, device="cpu")).to(torch.float32)
        found = exact.gradient(model, x, v, engine=engine)
        return found.midpoint, found.log2_error, found.to_torch(), found.audits

    return door


def _trace_tables(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    trace = _recorded(model, x, y)
    return trace.steps(), trace.errors(), trace.points()


def _z(x: Tensor) -> Tensor:
    """Logits of ten classes."""
    return 8 * x.detach().flatten(1)[:, 20:30]


# `LIGHT` take a fraction of a second, `HEAVY` more
LIGHT: dict[str, Door] = {
    "measure": lambda m, x, y: fperr.measure(m, x, y, engine="ball", **_SMALL).frame,
    "attack": lambda m, x, y: fperr.attack(m, x, y, radius=0.1, steps=3),
    "attack l2": lambda m, x, y: fperr.attack(
        m, x, y, radius=0.5, steps=3, norm="l2", method="apgd", format="float16", restarts=2
    ),
    "attack exactly": lambda m, x, y: fperr.attack(m, x, y, radius=0.1, steps=1, format="exact"),
    "attack_in_batches": _batches,
    "attribute": lambda m, x, y: (
        fperr.attribute(m, x, y, radius=0.1, steps=2, starts=1, exact="all", progress=False).frame
    ),
    "gradient by balls": _gradient("ball"),
    "gradient by words": _gradient("double_word"),
    "prepare": lambda m, x, y: _gradient("float64")(exact.prepare(m), x, y),
    "capture": lambda m, x, y: exact.capture(m, x).network_digest,
    "check": lambda m, x, y: bounds.check(_z(x), y),
    "logit_gradient": lambda m, x, y: bounds.logit_gradient(_z(x), y),
    "stable_ce_logit_gradient": lambda m, x, y: bounds.stable_ce_logit_gradient(_z(x), y),
    "stable_ce_relative_error": lambda m, x, y: bounds.stable_ce_relative_error(10, "float16"),
    "accurate_cross_entropy": lambda m, x, y: bounds.accurate_cross_entropy(_z(x), y).length,
    "accurate_cross_entropy_errors": lambda m, x, y: bounds.accurate_cross_entropy_errors(
        10, 5.0, "float16"
    ),
    "paper": lambda m, x, y: bounds.paper(_z(x), y, 1.0),
    "backward_units": lambda m, x, y: bounds.backward_units(m, x),
    "log2_input_gradient": lambda m, x, y: bounds.log2_input_gradient([0.5, 0.1], [1.0, 2.0]),
    "log2_delta_sup_input": lambda m, x, y: bounds.log2_delta_sup_input([1.0, 2.0], 3.0, 0.1),
    "accuracy": lambda m, x, y: bounds.accuracy(FLOAT16, torch.device("cpu")),
    "zoo.load": lambda m, x, y: list(zoo.load("fashion_standard").state_dict().values()),
    "data": lambda m, x, y: data.fashion_mnist_1000().x[:3],
    "record": _trace_tables,
}
HEAVY: dict[str, Door] = {
    "measure by words": lambda m, x, y: fperr.measure(m, x, y, engine="double_word", **_SMALL),
    "measure by mpmath": lambda m, x, y: fperr.measure(m, x, y, engine="mpmath", **_SMALL),
    "gradient by mpmath": _gradient("mpmath"),
    "trace_layers": lambda m, x, y: fperr.trace_layers(m, x, y, progress=False).frame,
    "estimate": lambda m, x, y: estimate(m, x, y, engine="ball").rows,
    "falsify": lambda m, x, y: validation.falsify(["float16"], 120),
    "sweep": lambda m, x, y: validation.sweep(stride=100_000_000),
}
# they compute nothing in PyTorch
PURE = (
    "accuracy",
    "stable_ce_relative_error",
    "accurate_cross_entropy_errors",
    "Report.summary",
    "Report.routing",
    "LayerReport.summary",
)
# they read labels or inputs that they must refuse, and call the model
OF_MODELS = (
    "measure",
    "attack",
    "attack l2",
    "attack exactly",
    "attack_in_batches",
    "attribute",
    "gradient by balls",
    "gradient by words",
    "capture",
    "record",
)


def drawings(made: Spent) -> dict[str, Door]:
    """What draws and sums up: of a report, of layers and of a trace."""
    bound = {
        f"{type(plots).__name__}.{name}": getattr(plots, name)
        for plots in (made.report.plot, made.trace.plot, made.layers.plot)
        for name, _ in inspect.getmembers(type(plots), inspect.isfunction)
        if not name.startswith("_")
    }
    bound |= {
        "Report.to_html": made.report.to_html,
        "Report.summary": made.report.summary,
        "Report.routing": made.report.routing,
        "LayerReport.summary": made.layers.summary,
    }
    return {name: lambda m, x, y, draw=draw: draw() for name, draw in bound.items()}
