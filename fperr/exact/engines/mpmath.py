"""The exact network in mpmath, at one fixed working precision."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fperr.errors import ReferenceNotCertifiedError, UndecidedError
from fperr.exact.engines.base import ExactPoint, SampleEngine
from fperr.exact.engines.jacobian import MpmathPullbacks, MpmathRows
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.graph import Capture
from fperr.exact.interpreter import Interpreter, SavedValues
from fperr.exact.mp import MpArray


class MpmathEngine(SampleEngine[MpArray, MpArray]):
    """Everything in mpmath, at the precision of `vectors`.

    Args:
        capture: Network, captured for a single sample.
        vectors: Vectors of the measurement.
        by_rows: Whether all rows of J are computed.
    """

    def __init__(self, capture: Capture, vectors: MpVectors, *, by_rows: bool) -> None:
        super().__init__(vectors, by_rows=by_rows)
        self._mp_vectors = vectors
        self.interpreter = Interpreter(capture, vectors.arithmetic)

    @property
    def name(self) -> str:
        """See `ExactEngine`."""
        return self._mp_vectors.arithmetic.name

    def state(self, x: Tensor) -> ExactPoint[MpArray, MpArray]:
        """See `SampleEngine`."""
        try:
            run = self.interpreter.forward(x)
            return self._state(self.interpreter, run, x, is_proved=False)
        except UndecidedError as fault:
            raise ReferenceNotCertifiedError(str(fault)) from fault

    def _midpoints(self, numbers: MpArray) -> NDArray[np.object_]:
        return numbers

    def _stored_rows(self, rows: MpArray) -> MpmathRows:
        return MpmathRows(rows, self._mp_vectors)

    def _pullbacks(
        self, interpreter: Interpreter[MpArray], saved_values: SavedValues[MpArray]
    ) -> MpmathPullbacks:
        return MpmathPullbacks(interpreter, saved_values)
