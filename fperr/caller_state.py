"""Independence of public functions from what the caller has set in PyTorch, flint or NumPy.

Modes, defaults and random generators belong to the caller's thread or to the whole process. Each
public function that computes is decorated with `in_neutral_state`: whatever the caller has set, its
results are the same, and afterwards all settings are as before, after an error too. A mode that may
change what PyTorch computes on purpose is not switched off in silence: `ModeError` names it.

**Public functions of one process run one after another.** They hold the same lock, because
PyTorch's and flint's switches belong to the process; so threads gain nothing by calling them side
by side (processes do). Meanwhile, code of the caller in another thread, outside fperr, may see
float32 as default dtype, parameters with `requires_grad` off, kernels' switches as set here, and
global random generators that are seeded and later put back.

Not changed are deterministic algorithms, the number of threads, `torch.set_flush_denormal` (which
float kernels obey, also those of the attack under study), warning filters, and matplotlib's style.
Functions that read tables and compute nothing are not decorated.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import flint
import numpy as np
import torch
from torch import Tensor, nn, overrides
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from fperr import global_generators, pass_origin
from fperr.errors import ModeError
from fperr.vocabulary import refuse_old_spelling

P = ParamSpec("P")
R = TypeVar("R")

# To be held while a switch of the process is changed: of PyTorch, of flint, of parameters.
SWITCH_LOCK = threading.RLock()
_FLINT_BITS = 53  # python-flint's own default
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_neutral_state(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function, so that it runs in the neutral state, and only one at a time.

    Tensors made under `torch.inference_mode` are first copied to ones that autograd can use.

    Args:
        function: Public function. If `model` and `x` are among its parameters, the decorated one
            also refuses a model that depends on the caller's default dtype or device.

    Raises:
        ModeError: At a call: a mode of the caller is in the way, or the model's parameters were
            made under `torch.inference_mode`.
    """
    check_defaults = _DefaultsCheck(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_old_spelling(function, args, kwargs)
        check_defaults(args, kwargs)
        with neutral_state():
            ordinary = {name: _ordinary(value) for name, value in kwargs.items()}
            return function(*map(_ordinary, args), **ordinary)

    return run


def neutral_outside_yield(function: Callable[P, Iterator[R]]) -> Callable[P, Iterator[R]]:
    """Decorate a generator under `contextmanager`, so that its code around `yield` runs neutrally.

    It may stand in a block of `fperr.repaired`, which is left out of that code. The block of the
    `with` is the caller's code. It runs in the caller's state, without the lock.
    """
    check_defaults = _DefaultsCheck(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        refuse_old_spelling(function, args, kwargs)
        check_defaults(args, kwargs)
        with neutral_state(allows_repaired=True):
            ordinary = {name: _ordinary(value) for name, value in kwargs.items()}
            generator: Any = function(*map(_ordinary, args), **ordinary)
            value: R = next(generator)
        try:
            yield value
            with neutral_state(allows_repaired=True):
                next(generator, None)
        except BaseException as fault:
            with neutral_state(allows_repaired=True):
                generator.throw(fault)
        finally:
            generator.close()  # it is still open if a mode of the caller was in the way at the end

    return run


@contextmanager
def neutral_state(*, allows_repaired: bool = False) -> Iterator[None]:
    """Run a block in the neutral state: default settings, seeded generators, and the lock held.

    Inside, gradients are on; inference mode, autocast and anomaly detection are off; new tensors
    are float32 on the CPU; flint computes with 53 bits. Afterwards all settings are as before.

    Args:
        allows_repaired: Whether a block of `fperr.repaired` is left for that time; else it is
            refused, because what is called here has losses of its own.

    Raises:
        ModeError: A mode of the caller is in the way.
    """
    with SWITCH_LOCK, ExitStack() as stack:
        _refuse_modes(allows_repaired=allows_repaired)
        for _ in _function_modes():  # default devices, and what is allowed
            stack.enter_context(overrides._pop_mode_temporarily())
        for device in filter(torch.is_autocast_enabled, _AUTOCAST_DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(mode=False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(_float32_as_default())
        stack.enter_context(flint_precision(_FLINT_BITS))
        stack.enter_context(_one_flint_thread())
        stack.enter_context(pass_origin.internal_passes())
        if not global_generators.are_seeded():  # they are if a public function calls another
            stack.enter_context(global_generators.seeded())
        yield


def _function_modes() -> list[Any]:
    """The caller's function modes, the innermost last; a default device is one of them."""
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _refuse_modes(*, allows_repaired: bool) -> None:
    """Refuse modes that may change what PyTorch computes.

    Raises:
        ModeError: Such a mode is active.
    """
    function_modes = [
        m
        for m in _function_modes()
        if not isinstance(m, DeviceContext)
        and not (allows_repaired and getattr(m, "is_of_fperr", False))
    ]
    names = [f"{type(m).__name__} (a TorchFunctionMode)" for m in function_modes]
    dispatch_modes = _get_current_dispatch_mode_stack()
    names += [
        f"{type(m).__name__} (a TorchDispatchMode)"
        for m in dispatch_modes
        if not getattr(m, "is_of_fperr", False)
    ]
    if torch._C._functorch.peek_interpreter_stack() is not None:
        names.append("a transform of torch.func, such as vmap or grad")
    try:  # disabling these hooks raises while some are active
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            pass
    except RuntimeError:
        names.append("saved_tensors_hooks of torch.autograd.graph (save_on_cpu is such)")
    if names:
        raise ModeError(
            f"expected no mode that may change what PyTorch computes, got {', '.join(names)}: "
            "leave its `with` block before calling fperr, and enter it again afterwards"
        )


@contextmanager
def _float32_as_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def flint_precision(bits: int) -> Iterator[None]:
    """Set python-flint's precision inside a block, for this thread alone; restore it afterwards.

    Args:
        bits: Precision in bits.
    """
    with SWITCH_LOCK:
        before = flint.ctx.prec
        try:
            flint.ctx.prec = bits
            yield
        finally:
            flint.ctx.prec = before


@contextmanager
def _one_flint_thread() -> Iterator[None]:
    before = flint.ctx.threads
    try:
        flint.ctx.threads = 1
        yield
    finally:
        flint.ctx.threads = before


def _ordinary(value: Any) -> Any:
    """Return an argument, or a copy of it if it is a tensor that autograd cannot use.

    Raises:
        ModeError: The argument is a model with such tensors among parameters or buffers.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, nn.Module):
        for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
            if tensor.is_inference():
                raise ModeError(
                    f"expected a model that autograd can differentiate, got {name} made under "
                    "torch.inference_mode(): copy the model outside of that mode, "
                    "model = copy.deepcopy(model), and give the copy"
                )
    return value


class _DefaultsCheck:
    """A check that refuses a model which depends on the caller's default dtype or device.

    Such a model makes tensors in its forward without naming their dtype or device. Under the
    neutral defaults it would be another network, or fail.

    Args:
        function: Function whose arguments `model` and `x` are checked, if it has them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        self._is_needed = {"model", "x"} <= self._signature.parameters.keys()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check the arguments of a call.

        Raises:
            ModeError: The model depends on the caller's defaults.
        """
        dtype, device = torch.get_default_dtype(), _default_device()
        if not self._is_needed or (dtype == torch.float32 and device is None):
            return
        try:
            arguments = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the call itself says so
            return
        model, x = arguments.get("model"), arguments.get("x")
        with neutral_state():
            neutral_outputs = _outputs(model, x)
        with neutral_state(), nullcontext() if device is None else device:
            torch.set_default_dtype(dtype)
            caller_outputs = _outputs(model, x)
        if caller_outputs is None or (
            neutral_outputs is not None and _are_equal(neutral_outputs, caller_outputs)
        ):
            return
        symptom = "fails" if neutral_outputs is None else "gives other numbers"
        device_text = "" if device is None else f" on {device}"
        raise ModeError(
            f"expected a model whose forward does not depend on PyTorch's defaults, got one that "
            f"{symptom} under float32 on the CPU, where fperr runs it, and the caller has set "
            f"{dtype}{device_text}: name dtype= and device= where its forward makes tensors, as in "
            "torch.zeros(3, dtype=x.dtype, device=x.device)"
        )


def _default_device() -> torch.device | None:
    """The default device that the caller has set, or None."""
    devices = [m.device for m in _function_modes() if isinstance(m, DeviceContext)]
    return devices[-1] if devices else None


def _outputs(model: Any, x: Any) -> list[Tensor] | None:
    """The tensors that the model returns for the first sample; None if it fails."""
    try:
        first_sample = torch.as_tensor(x[:1])
        tensor = next((p for p in model.parameters()), first_sample)
        with torch.no_grad():
            output = model(first_sample.detach().clone().to(tensor.device, tensor.dtype))
    except Exception:  # the call itself says so
        return None
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )
