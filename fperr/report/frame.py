"""The report of a measurement: a data frame, one row per sample, scenario, loss and format."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.errors import DamagedFileWarning
from fperr.report.columns import MEASUREMENT, dtypes
from fperr.report.file import from_bytes, to_bytes
from fperr.report.html import AttributionSection, page
from fperr.report.judging import judge
from fperr.report.plots import Plots
from fperr.report.summary import routing, summarise
from fperr.report.verdict import DEFAULT_THRESHOLDS, Thresholds, Verdict
from fperr.storage import SEAL, sealed, write

SCHEMA_VERSION = 10

# Every column, in order, with its pandas dtype.
COLUMNS = dtypes(MEASUREMENT)


@dataclass(frozen=True, eq=False)
class Report:
    """The results of a measurement, and how they came about.

    Attributes:
        frame: Data frame with one row for each sample, scenario, loss and format; the columns are
            those of the data dictionary, `fperr.report.columns.MEASUREMENT`.
        provenance: Settings, versions, precision switches and digests, by network.

    Example:
        >>> import fperr
        >>> from fperr import data, zoo
        >>> images, model = data.fashion_mnist_1000().first(1), zoo.load("fashion_standard")
        >>> report = fperr.measure(
        ...     model, images.x, images.y, losses=["cw", "mifpe"], formats=["float32"],
        ...     progress=False, name="standard",
        ... )
        >>> report
        <fperr.Report of standard: 2 rows; see .summary(), .frame>
        >>> bool((report.frame["delta"] < 1e-3).all())
        True
    """

    frame: pd.DataFrame
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        networks = ", ".join(self.provenance)
        return f"<fperr.Report of {networks}: {len(self.frame)} rows; see .summary(), .frame>"

    def _repr_html_(self) -> str:
        """The table of verdicts, for notebooks."""
        if not len(self.frame):
            return f"<p>{escape(repr(self))}</p>"
        columns = ["network", "loss", "format", "rows", "delta_median", "verdict"]
        table = self.summary()
        table = table[[name for name in columns if name in table.columns]]
        html: str = table.to_html(index=False, float_format="{:.3g}".format)
        return html

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, object]], provenance: dict[str, Any]
    ) -> "Report":
        """Make a report from rows; columns that a row does not name are missing values.

        Sample and label are integers, which have no missing value: each row names them.

        Args:
            rows: Values by column.
            provenance: Provenance by network.

        Raises:
            ValueError: a row names a column that does not exist, or neither sample nor label.
        """
        row_list = list(rows)
        unknown = {name for row in row_list for name in row} - COLUMNS.keys()
        if unknown:
            raise ValueError(f"unknown columns {sorted(unknown)}: expected some of {list(COLUMNS)}")
        for name in ("sample", "label"):
            if any(row.get(name) is None for row in row_list):
                raise ValueError(f"every row must name {name!r}, an integer, and one does not")
        series = {
            name: pd.Series([row.get(name) for row in row_list], dtype=dtype)
            for name, dtype in COLUMNS.items()
        }
        return cls(pd.DataFrame(series), provenance)

    @property
    def plot(self) -> Plots:
        """Figures: `step_gain()`, `relative_error()`, `sign_errors()`, `stages()`, `bounds()`."""
        return Plots(self.frame)

    def summary(
        self,
        by: tuple[str, ...] = ("network", "loss", "format"),
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
    ) -> pd.DataFrame:
        """Quartiles of delta, counts of failures, and a verdict, for each group of rows.

        `unmeasured` counts the rows that neither have a delta nor fail; `reason` is the most
        frequent reason of those rows.

        Args:
            by: Columns to group by. Without `"scenario"` among them, all scenarios of a group are
                summarised together.
            thresholds: Largest errors and shares of failures that the verdict allows.

        Returns:
            A data frame with one row for each group.

        Example:
            >>> import fperr
            >>> from fperr import data, zoo
            >>> images = data.fashion_mnist_1000().first(2)
            >>> report = fperr.measure(
            ...     zoo.load("fashion_saturated"), images.x, images.y,
            ...     losses=["ce", "mifpe"], formats=["float16"], progress=False,
            ... )
            >>> summary = report.summary()
            >>> summary["loss"].tolist(), summary["rows"].tolist()
            (['ce', 'mifpe'], [2, 2])
            >>> summary["verdict"].str.split(":").str[0].tolist()
            ['do not trust', 'cannot tell from 2 images, about --n 59 would']
        """
        return summarise(self.frame, by, thresholds)

    def routing(self) -> pd.DataFrame:
        """The branches of ReLUs and poolings that a format took differently, by layer.

        Each layer with a difference has a row: the number of samples with flips, the number of
        flips, and the number of further ones at exact ties (`tie_flips`). `frame` has the sums over
        the layers, and delta without the flips (`delta_frozen`).
        """
        return routing(self.frame)

    def is_gradient_trustworthy(
        self, loss: str, format: str, thresholds: Thresholds = DEFAULT_THRESHOLDS
    ) -> bool:
        """Whether an attack may follow the gradient of `loss` computed in `format`.

        That is to be shown: it is false, too, if too few images were measured; see `verdicts`.

        Args:
            loss: Loss that was measured.
            format: Format that was measured.
            thresholds: How good gradients must be, and how many of them may fail; those that are
                exactly zero or not finite always fail.

        Raises:
            ValueError: the loss was not measured in the format; lists what was.
        """
        return all(v.is_trustworthy for v in self.verdicts(loss, format, thresholds).values())

    def verdicts(
        self, loss: str, format: str, thresholds: Thresholds = DEFAULT_THRESHOLDS
    ) -> dict[str, Verdict]:
        """The verdict on the gradient of `loss` computed in `format`, by network.

        `state` is `"trustworthy"`, `"do not trust"`, `"cannot tell"` or `"not measured"`, and
        `sentence` says why.

        Args:
            loss: Loss that was measured.
            format: Format that was measured.
            thresholds: How good gradients must be, and how many of them may fail.

        Raises:
            ValueError: the loss was not measured in the format; lists what was.

        Example:
            >>> import fperr
            >>> from fperr import data, zoo
            >>> images = data.fashion_mnist_1000().first(3)
            >>> report = fperr.measure(
            ...     zoo.load("fashion_saturated"), images.x, images.y, losses=["ce"],
            ...     formats=["float32"], progress=False, name="saturated",
            ... )
            >>> report.verdicts("ce", "float32")["saturated"].state
            'do not trust'
        """
        rows = self.frame[(self.frame["loss"] == loss) & (self.frame["format"] == format)]
        if not len(rows):
            measured = sorted({f"{a} in {b}" for a, b in self.frame[["loss", "format"]].to_numpy()})
            raise ValueError(f"{loss} in {format} was not measured: {', '.join(measured)} were")
        return {
            str(name): judge(network, thresholds)
            for name, network in rows.groupby("network", sort=False)
        }

    @classmethod
    def merged(cls, reports: Sequence["Report"]) -> "Report":
        """Merge the reports of several networks into one.

        Raises:
            ValueError: two reports have networks of the same name.
        """
        names = [name for report in reports for name in report.provenance]
        if len(set(names)) < len(names):
            raise ValueError(f"networks must have different names, got {names}: give name= each")
        provenance = {name: p for report in reports for name, p in report.provenance.items()}
        frames = [report.frame for report in reports]
        return cls(pd.concat(frames, ignore_index=True).astype(COLUMNS), provenance)

    @in_neutral_state
    def to_html(
        self,
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
        attributions: Mapping[str, AttributionSection] | None = None,
        made_on: date | None = None,
    ) -> str:
        """One self-contained HTML page: verdicts in plain words, figures, tables, provenance.

        Args:
            thresholds: Largest errors and shares of failures that the verdicts allow.
            attributions: Sections about attributions, by network: `{name: attribution.section}`.
            made_on: Date that the page bears; today if it is not given.
        """
        day = made_on or date.today()  # the reader's own day
        return page(self.frame, self.provenance, thresholds, attributions or {}, day)

    def to_parquet(self, path: str | Path) -> None:
        """Write frame, provenance and a digest to one Parquet file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        write(checks.path("path", path), self.to_bytes())

    def to_bytes(self, stamp: str = SEAL) -> bytes:
        """The content of the file that `to_parquet` writes.

        Args:
            stamp: Text that the digest replaces; a run folder puts the name of the file into it.
        """
        return sealed(to_bytes(self.frame, self.provenance, SCHEMA_VERSION, stamp))

    @classmethod
    def from_parquet(cls, path: str | Path) -> "Report":
        """Read a report that `to_parquet` wrote; warns if the file is too old to have a digest.

        Raises:
            ValueError: the file is missing, no report, damaged, of another schema version, or holds
                values that no measurement has.

        Warns:
            DamagedFileWarning: the file has no digest, so that damage would not be noticed.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path} is missing: expected a measurements.parquet")
        report, is_confirmed = cls._of_bytes(Path(path).read_bytes(), path)
        if not is_confirmed:
            warnings.warn(
                f"{path} was written by an older fperr, without a digest: a byte that has changed "
                "since would not be noticed. Write it again with Report.to_parquet, or measure "
                "again",
                DamagedFileWarning,
                stacklevel=2,
            )
        return report

    @classmethod
    def from_bytes(cls, content: bytes, source: str | Path) -> "Report":
        """Read a report from the bytes that `to_bytes` returned.

        Args:
            content: Content of a file, with its digest.
            source: Name of the file, for messages.

        Raises:
            ValueError: as `from_parquet` does.
        """
        return cls._of_bytes(content, source)[0]

    @classmethod
    def _of_bytes(cls, content: bytes, source: str | Path) -> tuple["Report", bool]:
        """The report, and whether a digest has confirmed it."""
        frame, provenance, is_confirmed = from_bytes(content, source, SCHEMA_VERSION, COLUMNS)
        return cls(frame, provenance), is_confirmed
