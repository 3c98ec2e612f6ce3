"""The errors of fperr: each says what was expected, what was got, and what to do.

Faults in arguments are `ValueError` or `TypeError`; these classes are for models and numerics.
"""


class FperrError(Exception):
    """Base of every error that fperr defines.

    Attributes:
        report: the `Report` of what was finished before, where a measurement was under way.
    """

    report: object = None


class ModelError(FperrError):
    """The model cannot be measured: it is random, depends on its batch, or fails in a format."""


class ModeError(FperrError):
    """A mode that the caller has set in PyTorch is in the way; says which."""


class UnsupportedOperationError(FperrError):
    """The captured network contains operations that have no exact meaning here; all are listed."""


class CaptureAuditError(FperrError):
    """The captured graph does not reproduce the eager run bit for bit."""


class StaleCaptureError(FperrError):
    """Parameters or buffers changed after the network was captured."""


class ReferenceNotCertifiedError(FperrError):
    """Two precisions disagree: the reference does not have the digits it was asked for."""


class ContradictedError(FperrError):
    """PyTorch in float64 computes something else than the exact network: one of them is wrong."""


class SingularGradientError(ReferenceNotCertifiedError):
    """The gradient is infinite or undefined at a sample: an operation has no slope there.

    Attributes:
        sample: which one.
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
        """The same, with the modules that call the operation: `" in head.norm (Norm)"`."""
        return SingularGradientError(self.sample, self.operation, where)


class UndecidedError(FperrError):
    """A decision (of a ReLU, of a pooling) lies inside an enclosure."""

    def __init__(self, undecided: str, layer: str = "") -> None:
        super().__init__(f"{layer}: {undecided}" if layer else undecided)
        self.undecided = undecided

    def at(self, layer: str) -> "UndecidedError":
        """The same, with the name of the layer."""
        return UndecidedError(self.undecided, layer)


class MissingDataError(FperrError):
    """A file asked for by name is not on this machine; says what it is and how to get it."""


class StorageError(FperrError):
    """A file could not be written, a folder is in use, or what was written has gone."""


class DamagedFileWarning(UserWarning):
    """A file is not as fperr wrote it: names it, and says that it is computed or written again."""


class InexactProductError(FperrError):
    """A float64 product of integers that needs no rounding was rounded, or flushed to zero."""
