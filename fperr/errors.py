"""The errors of fperr: each message says what was expected, what was got, and what to do.

Wrong arguments raise `ValueError` or `TypeError`; these classes are for models, numerics and files.

Example:
    >>> from fperr import errors
    >>> issubclass(errors.SingularGradientError, errors.FperrError)
    True
"""


class FperrError(Exception):
    """Base class of every error that fperr defines.

    Attributes:
        report: Report of the rows that were finished when a measurement failed; None elsewhere.

    Example:
        >>> import fperr
        >>> try:
        ...     fperr.Trace("no_such_folder")
        ... except fperr.FperrError as error:
        ...     print(error)
        no_such_folder holds no trace: trace.json is missing
    """

    report: object = None


class ModelError(FperrError):
    """The model cannot be measured: it is random, depends on its batch, or fails in a format.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> exact.capture(torch.nn.Flatten(0).eval(), torch.rand(1, 4))
        Traceback (most recent call last):
            ...
        fperr.errors.ModelError: the model must return logits of shape (1, K), got (4,): wrap it
    """


class ModeError(FperrError):
    """A mode that the caller has set in PyTorch may change results; the message names it.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> with torch.autograd.graph.save_on_cpu():
        ...     exact.capture(torch.nn.Linear(4, 3).eval(), torch.rand(1, 4))
        Traceback (most recent call last):
            ...
        fperr.errors.ModeError: expected no mode that may change what PyTorch computes, got ...
    """


class UnsupportedOperationError(FperrError):
    """The network contains operations that no exact engine knows; the message lists them.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> class LogGamma(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.lgamma()
        >>> exact.capture(LogGamma().eval(), torch.rand(1, 4))
        Traceback (most recent call last):
            ...
        fperr.errors.UnsupportedOperationError: the network uses operations that have no exact ...
    """


class CaptureAuditError(FperrError):
    """The captured graph does not reproduce the eager run bit for bit.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> class Counting(torch.nn.Module):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x * self.calls
        >>> exact.capture(Counting().eval(), torch.rand(1, 4))
        Traceback (most recent call last):
            ...
        fperr.errors.CaptureAuditError: the captured graph's logits differ from the eager run's ...
    """


class StaleCaptureError(FperrError):
    """Parameters or buffers changed after the network was captured.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> model = torch.nn.Linear(4, 3).eval()
        >>> prepared = exact.prepare(model)
        >>> _ = model.requires_grad_(False).weight.mul_(2)
        >>> exact.gradient(prepared, torch.rand(1, 4), torch.eye(3)[:1])
        Traceback (most recent call last):
            ...
        fperr.errors.StaleCaptureError: parameters, buffers or modules of the model were changed ...
    """


class ReferenceNotCertifiedError(FperrError):
    """The exact gradient could not be computed to the required digits.

    Example:
        The number that this ReLU compares with 0 is exactly 0, which no precision can prove.

        >>> import torch
        >>> from fperr import exact
        >>> class AtKink(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(x.exp() * (-x).exp() - 1)
        >>> exact.gradient(AtKink().eval(), torch.rand(1, 3), torch.ones(1, 3), largest_digits=60)
        Traceback (most recent call last):
            ...
        fperr.errors.ReferenceNotCertifiedError: 0.0 of 38 bits are proved at ...
    """


class ContradictedError(FperrError):
    """PyTorch in float64 and the exact network disagree beyond rounding: one of them is wrong.

    It arises from a fault of PyTorch or of fperr, not of a sample: please report it, with the
    model.

    Example:
        So it is no kind of error for which a sample is left out.

        >>> from fperr import errors
        >>> issubclass(errors.ContradictedError, errors.ReferenceNotCertifiedError)
        False
    """


class SingularGradientError(ReferenceNotCertifiedError):
    """The gradient is infinite or undefined at a sample, where an operation has no finite slope.

    Attributes:
        sample: Index of the sample.
        operation: ATen name of the operation.

    Example:
        >>> import torch
        >>> from fperr import errors, exact
        >>> class Root(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.sqrt()
        >>> try:
        ...     exact.gradient(Root().eval(), torch.zeros(1, 2), torch.ones(1, 2))
        ... except errors.SingularGradientError as error:
        ...     print(error.sample, error.operation)
        0 aten.sqrt.default
    """

    def __init__(self, sample: int, operation: str, where: str = "") -> None:
        super().__init__(
            f"infinite slope at sample {sample}: {operation}{where} at 0, where PyTorch's gradient "
            "is infinite or not a number, too. Keep its argument away from 0, or leave the sample "
            "out"
        )
        self.sample, self.operation = sample, operation

    def within(self, where: str) -> "SingularGradientError":
        """The same error, with the modules that call the operation.

        Args:
            where: Modules in words, e.g. `" in head.norm (Norm)"`.
        """
        return SingularGradientError(self.sample, self.operation, where)


class UndecidedError(FperrError):
    """An error bound is too wide to decide which branch a ReLU or a pooling takes.

    Attributes:
        undecided: Description of the comparison.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> B = exact.BallArithmetic(53)
        >>> x = B.from_torch(torch.tensor([0.3]))
        >>> B.sign(B.sub(B.exp(B.log(x)), x))  # 0, which the enclosure contains
        Traceback (most recent call last):
            ...
        fperr.errors.UndecidedError: 1 decisions, the first at (0,), are closer than ... can tell
    """

    def __init__(self, undecided: str, layer: str = "") -> None:
        super().__init__(f"{layer}: {undecided}" if layer else undecided)
        self.undecided = undecided

    def at(self, layer: str) -> "UndecidedError":
        """The same error, with the name of the layer.

        Args:
            layer: Name of the layer.
        """
        return UndecidedError(self.undecided, layer)


class MissingDataError(FperrError):
    """A data file is not on this machine; the message says what it is and how to get it.

    Example:
        >>> from fperr import data
        >>> data.images_named("no_such_file.npz")
        Traceback (most recent call last):
            ...
        fperr.errors.MissingDataError: no_such_file.npz is missing: expected a .npz file with ...
    """


class StorageError(FperrError):
    """A file could not be written, a folder is in use, or a written file has disappeared.

    Example:
        >>> import fperr
        >>> fperr.Report.from_rows([], {}).to_parquet("no_such_folder/report.parquet")
        Traceback (most recent call last):
            ...
        fperr.errors.StorageError: no_such_folder/report.parquet could not be written ...
    """


class DamagedFileWarning(UserWarning):
    """A file is not as fperr wrote it; it is computed or written again.

    Example:
        >>> import tempfile, warnings
        >>> from pathlib import Path
        >>> import fperr, torch
        >>> model, x, y = torch.nn.Linear(4, 3).eval(), torch.rand(1, 4), torch.tensor([0])
        >>> with warnings.catch_warnings(record=True) as given:
        ...     warnings.simplefilter("always")
        ...     with tempfile.TemporaryDirectory() as out:
        ...         report = fperr.measure(model, x, y, losses=["cw"], out=out, progress=False)
        ...         size = (Path(out) / "0000000.parquet").write_bytes(b"damaged")
        ...         report = fperr.measure(model, x, y, losses=["cw"], out=out, progress=False)
        >>> [warning.category.__name__ for warning in given]
        ['DamagedFileWarning']
    """


class InexactProductError(FperrError):
    """A float64 product of integers that needs no rounding was rounded, or flushed to zero.

    Example:
        >>> import torch
        >>> from fperr import exact
        >>> torch.set_flush_denormal(True)  # numbers below 2^-1022 become 0
        True
        >>> model, x, v = torch.nn.Linear(4, 3).eval(), torch.rand(1, 4), torch.eye(3)[:1]
        >>> exact.gradient(model, x, v, engine="double_word")
        Traceback (most recent call last):
            ...
        fperr.errors.InexactProductError: numbers below 2^-1022 become zero on cpu: ...
        >>> torch.set_flush_denormal(False)
        True
    """


class UncertifiedGradientWarning(UserWarning):
    """An exact gradient of an attack could not be certified: it takes no step there.

    Example:
        The number that this ReLU compares with 0 is exactly 0, which no precision can prove.

        >>> import warnings
        >>> import fperr, torch
        >>> class AtKink(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(x.exp() * (-x).exp() - 1)
        >>> x, y = torch.rand(1, 3), torch.tensor([0])
        >>> with warnings.catch_warnings(record=True) as given:
        ...     warnings.simplefilter("always")
        ...     result = fperr.attack(
        ...         AtKink().eval(), x, y, loss="ce", radius=0.1, steps=1, format="exact"
        ...     )
        >>> given[0].category.__name__
        'UncertifiedGradientWarning'
    """


class RepairWarning(UserWarning):
    """Calls within `fperr.repaired` were not repaired.

    Example:
        >>> import warnings
        >>> import fperr, torch
        >>> with warnings.catch_warnings(record=True) as given:
        ...     warnings.simplefilter("always")
        ...     with fperr.repaired("mifpe"):  # no call of cross_entropy in it
        ...         loss = torch.rand(2, 3).logsumexp(1)
        >>> given[0].category.__name__
        'RepairWarning'
    """


class SlowReferenceWarning(UserWarning):
    """Samples need balls, which take time; says how long.

    Example:
        Turned into an error, it ends a call that would take long; here, it does not arise.

        >>> import warnings
        >>> import torch
        >>> from fperr import errors, exact
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", errors.SlowReferenceWarning)
        ...     exact.gradient(torch.nn.Linear(4, 3).eval(), torch.rand(1, 4), torch.eye(3)[:1])
        ExactGradient(shape (1, 4), ...)
    """
