"""The ruler: an unmodified network and its gradient in extended precision.

It shares no code with the losses, scales and attacks that it measures.

Example:
    >>> import torch
    >>> from fperr import exact
    >>> model, x, v = torch.nn.Linear(4, 3).eval(), torch.rand(1, 4), torch.eye(3)[:1]
    >>> exact.gradient(model, x, v, engine="ball").certainty
    ('proved',)
"""

from fperr.caller_state import in_neutral_state
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.entry import ExactGradient, gradient
from fperr.exact.graph import Capture
from fperr.exact.graph import capture as _capture
from fperr.exact.interpreter import Interpreter
from fperr.exact.mp import MpArithmetic
from fperr.exact.prepared import PreparedModel, prepare
from fperr.vocabulary import ENGINES

# Users' calls run in a neutral state; inside fperr `_capture` runs in the state of a format.
capture = in_neutral_state(_capture)

__all__ = [
    "ENGINES",
    "BallArithmetic",
    "BallArray",
    "Capture",
    "ExactGradient",
    "Interpreter",
    "MpArithmetic",
    "PreparedModel",
    "capture",
    "gradient",
    "prepare",
]
