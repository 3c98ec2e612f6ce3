"""The global random generators of Python, NumPy and PyTorch: seeded inside a block, and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import numpy as np
import torch
from numpy.random import mtrand

_BITS = np.random.MT19937(0)  # stands in for NumPy's inside
_FRESH_STATE = _BITS.state


def are_seeded() -> bool:
    """Whether the block of `seeded` is at work."""
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
