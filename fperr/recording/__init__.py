"""Any library's attack, recorded through the model that it calls."""

from fperr.recording.entry import record
from fperr.recording.trace import Trace

__all__ = ["Trace", "record"]
