"""Whose forward passes of a model are: fperr's own questions, or an attack's steps.

The hooks of a recorder see every pass. Inside fperr's public functions they are fperr's own
(checks, captures, measurements), and no part of an attack, but for the steps of an attack of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ARE_OUR_OWN: ContextVar[bool] = ContextVar("passes_are_our_own", default=False)


def are_our_own() -> bool:
    """Whether the passes of this thread are fperr's own now."""
    return _ARE_OUR_OWN.get()


@contextmanager
def our_own() -> Iterator[None]:
    """Inside, passes are fperr's own questions."""
    token = _ARE_OUR_OWN.set(True)
    try:
        yield
    finally:
        _ARE_OUR_OWN.reset(token)


@contextmanager
def of_an_attack() -> Iterator[None]:
    """Inside, passes are steps of an attack."""
    token = _ARE_OUR_OWN.set(False)
    try:
        yield
    finally:
        _ARE_OUR_OWN.reset(token)
