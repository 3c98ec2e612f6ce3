"""The origin of a model's forward passes: fperr's internal evaluations, or an attack's steps.

The hooks of a recorder see every pass. Inside fperr's public functions, passes are internal
(checks, captures, measurements) and no part of an attack, except for the steps of fperr's attacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ARE_INTERNAL: ContextVar[bool] = ContextVar("passes_are_our_own", default=False)


def are_internal() -> bool:
    """Whether forward passes in this context are internal to fperr."""
    return _ARE_INTERNAL.get()


@contextmanager
def internal_passes() -> Iterator[None]:
    """Mark the forward passes inside a block as internal to fperr."""
    token = _ARE_INTERNAL.set(True)
    try:
        yield
    finally:
        _ARE_INTERNAL.reset(token)


@contextmanager
def attack_passes() -> Iterator[None]:
    """Mark the forward passes inside a block as steps of an attack."""
    token = _ARE_INTERNAL.set(False)
    try:
        yield
    finally:
        _ARE_INTERNAL.reset(token)
