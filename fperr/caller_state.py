"""A public function neither feels nor changes what its caller has set in PyTorch, flint or NumPy.

Modes, defaults and random generators belong to the caller's thread or to the whole process. A
public function wears `in_neutral_state`: whatever the caller has set, its results are the same,
and afterwards everything is as before, after an error too. Modes that may change what PyTorch
computes on purpose are not put aside in silence: `ModeError` names them.

All of them hold one lock, because PyTorch's and flint's switches belong to the process: **public
functions of one process run one after another**, so threads gain nothing by calling them side by
side (processes do). Code of the caller that runs in another thread meanwhile, outside fperr, may
see float32 as default dtype, parameters that ask for no gradient, kernels' switches as set here,
and the global random generators seeded and put back.

Left as they are: deterministic algorithms, the number of threads, `torch.set_flush_denormal`
(which float kernels obey, those of the attack that is looked at too), warning filters, matplotlib's
style. What reads tables and computes nothing does not wear it.
"""

import functools
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import zip_longest
from typing import Any, ParamSpec, TypeVar

import flint
import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor, nn, overrides
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from fperr import pass_origin
from fperr.errors import ModeError
from fperr.vocabulary import refuse_old_spelling

P = ParamSpec("P")
R = TypeVar("R")

# Held by whoever changes a switch of the process: of PyTorch, of flint, of parameters.
SWITCH_LOCK = threading.RLock()
_FLINT_BITS = 53  # as python-flint starts
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
_OWN_BITS = np.random.MT19937(0)
_OWN_BITS_STATE = _OWN_BITS.state


def in_neutral_state(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function run in a neutral state, one at a time in this process.

    Tensors made under `torch.inference_mode` are copied to ordinary ones first.

    Args:
        function: with `model` and `x` among its parameters, it also refuses a model that depends
            on the caller's default dtype or device.

    Raises:
        ModeError: when called: a mode of the caller is in the way, or the model's parameters were
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
    """The same for a generator under `contextmanager`: what it does before and after its `yield`.

    In between runs the caller's own code, in the caller's state and without the lock.
    """
    check_defaults = _DefaultsCheck(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        refuse_old_spelling(function, args, kwargs)
        check_defaults(args, kwargs)
        with neutral_state():
            ordinary = {name: _ordinary(value) for name, value in kwargs.items()}
            generator: Any = function(*map(_ordinary, args), **ordinary)
            value: R = next(generator)
        try:
            yield value
            with neutral_state():
                next(generator, None)
        except BaseException as fault:
            with neutral_state():
                generator.throw(fault)
        finally:
            generator.close()  # where a mode of the caller was in the way at the end

    return run


@contextmanager
def neutral_state() -> Iterator[None]:
    """Inside: PyTorch's, NumPy's and flint's own defaults, generators with fixed seeds; one lock.

    Gradients are on; inference mode, autocast and anomaly detection off; tensors are made on the
    CPU, in float32; flint works at 53 bits. All of it is as before afterwards.

    Raises:
        ModeError: a mode of the caller is in the way.
    """
    with SWITCH_LOCK, ExitStack() as stack:
        _refuse_modes()
        for _ in _function_modes():  # default devices
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
        stack.enter_context(pass_origin.our_own())
        if mtrand.get_bit_generator() is not _OWN_BITS:  # one public function calls another
            stack.enter_context(_own_generators())
        yield


def _function_modes() -> list[Any]:
    """The caller's, the innermost last; a default device is one of them."""
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _refuse_modes() -> None:
    """Raise where a mode is active that may change what PyTorch computes."""
    found = [m for m in _function_modes() if not isinstance(m, DeviceContext)]
    names = [f"{type(m).__name__} (a TorchFunctionMode)" for m in found]
    dispatched = _get_current_dispatch_mode_stack()
    names += [f"{type(m).__name__} (a TorchDispatchMode)" for m in dispatched]
    if torch._C._functorch.peek_interpreter_stack() is not None:
        names.append("a transform of torch.func, such as vmap or grad")
    try:
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
    """Inside, python-flint works at that many bits, in this thread alone; restored afterwards."""
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


@contextmanager
def _own_generators() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators with fixed seeds; afterwards as before."""
    python, bits = random.getstate(), mtrand.get_bit_generator()
    numpy, cpu = np.random.get_state(legacy=False), torch.get_rng_state()
    cuda = [generator.get_state() for generator in _cuda_generators()]
    try:
        random.seed(0)
        _OWN_BITS.state = _OWN_BITS_STATE
        mtrand.set_bit_generator(_OWN_BITS)
        torch.default_generator.manual_seed(0)
        for generator in _cuda_generators():
            generator.manual_seed(0)
        yield
    finally:
        random.setstate(python)
        mtrand.set_bit_generator(bits)
        np.random.set_state(numpy)  # with the normal number that may be waiting
        torch.set_rng_state(cpu)
        for generator, state in zip_longest(_cuda_generators(), cuda):
            if state is None:  # first used inside: what was drawn is taken back
                generator.manual_seed(generator.initial_seed())
            else:
                generator.set_state(state)


def _cuda_generators() -> tuple[torch.Generator, ...]:
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.default_generators if is_used else ()


def _ordinary(value: Any) -> Any:
    """An argument, copied where it is a tensor that autograd cannot use.

    Raises:
        ModeError: a model whose parameters or buffers are such tensors.
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
    """Refuses a model that is another one under the caller's default dtype or device.

    Such a model makes tensors in its forward without naming their dtype or device. Under the
    neutral defaults another network would be looked at, or none could.

    Args:
        function: whose arguments `model` and `x` are looked at, if it has them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        self._is_needed = {"model", "x"} <= self._signature.parameters.keys()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a call.

        Raises:
            ModeError: the model depends on the caller's defaults.
        """
        dtype, device = torch.get_default_dtype(), _default_device()
        if not self._is_needed or (dtype == torch.float32 and device is None):
            return
        try:
            given = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the call itself says so
            return
        model, x = given.get("model"), given.get("x")
        with neutral_state():
            ours = _outputs(model, x)
        with neutral_state(), nullcontext() if device is None else device:
            torch.set_default_dtype(dtype)
            theirs = _outputs(model, x)
        if theirs is None or (ours is not None and _are_equal(ours, theirs)):
            return
        what = "fails" if ours is None else "gives other numbers"
        where = "" if device is None else f" on {device}"
        raise ModeError(
            f"expected a model whose forward does not depend on PyTorch's defaults, got one that "
            f"{what} under float32 on the CPU, where fperr runs it, and the caller has set {dtype}"
            f"{where}: name dtype= and device= where its forward makes tensors, as in "
            "torch.zeros(3, dtype=x.dtype, device=x.device)"
        )


def _default_device() -> torch.device | None:
    """The default device that the caller has set; None: none."""
    found = [m.device for m in _function_modes() if isinstance(m, DeviceContext)]
    return found[-1] if found else None


def _outputs(model: Any, x: Any) -> list[Tensor] | None:
    """What the model returns for the first sample; None where it fails."""
    try:
        one = torch.as_tensor(x[:1])
        tensor = next((p for p in model.parameters()), one)
        with torch.no_grad():
            found = model(one.detach().clone().to(tensor.device, tensor.dtype))
    except Exception:  # the call itself says so
        return None
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _are_equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs, strict=True)
    )
