"""The errors of fperr: each message says what was expected, what was got, and what to do.

Wrong arguments raise `ValueError` or `TypeError`; these classes are for models, numerics and files.
"""


class FperrError(Exception):
    """Base class of every error that fperr defines.

    Attributes:
        report: Report of the rows that were finished when a measurement failed; None elsewhere.
    """

    report: object = None


class ModelError(FperrError):
    """The model cannot be measured: it is random, depends on its batch, or fails in a format."""


class ModeError(FperrError):
    """A mode that the caller has set in PyTorch may change results; the message names it."""


class UnsupportedOperationError(FperrError):
    """The network contains operations that no exact engine knows; the message lists them."""


class CaptureAuditError(FperrError):
    """The captured graph does not reproduce the eager run bit for bit."""


class StaleCaptureError(FperrError):
    """Parameters or buffers changed after the network was captured."""


class ReferenceNotCertifiedError(FperrError):
    """The exact gradient could not be computed to the required digits."""


class ContradictedError(FperrError):
    """PyTorch in float64 and the exact network disagree beyond rounding: one of them is wrong."""


class SingularGradientError(ReferenceNotCertifiedError):
    """The gradient is infinite or undefined at a sample, where an operation has no finite slope.

    Attributes:
        sample: Index of the sample.
        operation: ATen name of the operation.
    """

    def __init__(self, sample: int, operation: str, where: str = "") -> None:
        super().__init__(
            f"infinite slope at sample {sample}: {operation}{where} at 0, where PyTorch's gradient "
            "is infinite or not a number, too. Keep its argument away from 0, or leave the sample "
            "out"
        )
        self.sample, self.operation = sample, operation

    def within(self, where: str) -> "SingularGradientError":
        """The same error, with the modules that call the operation: `" in head.norm (Norm)"`."""
        return SingularGradientError(self.sample, self.operation, where)


class UndecidedError(FperrError):
    """An error bound is too wide to decide which branch a ReLU or a pooling takes.

    Attributes:
        undecided: Description of the comparison.
    """

    def __init__(self, undecided: str, layer: str = "") -> None:
        super().__init__(f"{layer}: {undecided}" if layer else undecided)
        self.undecided = undecided

    def at(self, layer: str) -> "UndecidedError":
        """The same error, with the name of the layer."""
        return UndecidedError(self.undecided, layer)


class MissingDataError(FperrError):
    """A data file is not on this machine; the message says what it is and how to get it."""


class StorageError(FperrError):
    """A file could not be written, a folder is in use, or a written file has disappeared."""


class DamagedFileWarning(UserWarning):
    """A file is not as fperr wrote it; it is computed or written again."""


class InexactProductError(FperrError):
    """A float64 product of integers that needs no rounding was rounded, or flushed to zero."""


class RepairWarning(UserWarning):
    """Calls within `fperr.repaired` were not repaired."""


class SlowReferenceWarning(UserWarning):
    """Samples need balls, which take time; says how long."""
