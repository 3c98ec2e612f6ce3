"""Whose forward passes of a model are: fperr's own questions, or an attack's steps.

The hooks of a recorder see every pass. Inside fperr's public functions they are fperr's own
(checks, captures, measurements), and no part of an attack, but for the steps of an attack of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ARE_INTERNAL: ContextVar[bool] = ContextVar("passes_are_our_own", default=False)


def are_internal() -> bool:
    """Whether the passes of this thread are fperr's own now."""
    return _ARE_INTERNAL.get()


@contextmanager
def internal_passes() -> Iterator[None]:
    """Inside, passes are fperr's own questions."""
    token = _ARE_INTERNAL.set(True)
    try:
        yield
    finally:
        _ARE_INTERNAL.reset(token)


@contextmanager
def attack_passes() -> Iterator[None]:
    """Inside, passes are steps of an attack."""
    token = _ARE_INTERNAL.set(False)
    try:
        yield
    finally:
        _ARE_INTERNAL.reset(token)
