"""The global random generators of Python, NumPy and PyTorch: seeded for a block, and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import numpy as np
import torch
from numpy.random import mtrand

_BITS = np.random.MT19937(0)  # replaces NumPy's global bit generator inside the block
_FRESH_STATE = _BITS.state


def are_seeded() -> bool:
    """Whether a block of `seeded` is active."""
    return mtrand.get_bit_generator() is _BITS


@contextmanager
def seeded() -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch; put them back afterwards."""
    python, bits = random.getstate(), mtrand.get_bit_generator()
    numpy, cpu = np.random.get_state(legacy=False), torch.get_rng_state()
    cuda = [generator.get_state() for generator in _cuda_generators()]
    try:
        random.seed(0)
        _BITS.state = _FRESH_STATE
        mtrand.set_bit_generator(_BITS)
        torch.default_generator.manual_seed(0)
        for generator in _cuda_generators():
            generator.manual_seed(0)
        yield
    finally:
        random.setstate(python)
        mtrand.set_bit_generator(bits)
        np.random.set_state(numpy)  # with its spare normal number, if it has one
        torch.set_rng_state(cpu)
        for generator, state in zip_longest(_cuda_generators(), cuda):
            if state is None:  # CUDA was first used inside the block: back to the initial seed
                generator.manual_seed(generator.initial_seed())
            else:
                generator.set_state(state)


def _cuda_generators() -> tuple[torch.Generator, ...]:
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.default_generators if is_used else ()
