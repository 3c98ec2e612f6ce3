"""Figures of `fperr figures` as views of collected parts: the attacks are read, and none is run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from fperr import zoo
from fperr.campaign.jobs import Arm
from fperr.campaign.outcomes import ModelOutcomes, outcomes_of
from fperr.campaign.view import View
from fperr.errors import FperrError
from fperr.figures import FIGURES, Study, Subject, make
from fperr.figures.study import GRADIENT_COLUMNS, MissingResultError
from fperr.vocabulary import FormatName


@dataclass(frozen=True)
class CollectedStudy(Study):
    """A study whose attacks are those of a campaign.

    Attributes:
        view: The campaign.
    """

    view: View
    _last: dict[str, ModelOutcomes] = field(default_factory=dict)  # at most one network's

    def attack_outcomes(
        self, subject: Subject, model: nn.Module | None = None, **options: Any
    ) -> pd.DataFrame:
        """The outcome of an attack on a subject, from the campaign.

        A network that a figure makes itself from the subject's is attacked here and now.

        Raises:
            MissingResultError: The campaign has no such attack, or cells of it are missing.
        """
        if model is not None:
            return super().attack_outcomes(subject, model, **options)
        for attacked in self._outcomes(subject).attacks:
            if _is_that(attacked.arm, options):
                frame = attacked.first(subject.n)
                if frame is not None:
                    return frame
        listed = ", ".join(f"{name} = {value}" for name, value in sorted(options.items()))
        raise _missing(f"attack on {subject.n} images of {subject.name} with {listed}")

    def gradient_errors(
        self, subject: Subject, losses: Sequence[str], fmt: FormatName
    ) -> pd.DataFrame:
        """The rows of `fperr.measure` on a subject in one format, from the campaign.

        Raises:
            MissingResultError: The campaign has no such measurement, or cells of it are missing.
        """
        frames = [frame[frame["format"] == fmt] for frame in self._outcomes(subject).measured]
        if frames:
            frame = pd.concat(frames, ignore_index=True)
            is_asked = (frame["sample"] < subject.n) & frame["loss"].isin(losses)
            rows = frame.loc[is_asked, list(GRADIENT_COLUMNS)]
            rows = rows.sort_values("sample", ignore_index=True, kind="stable")
            if len(rows) == subject.n * len(losses):
                return rows
        raise _missing(
            f"measurement of {', '.join(losses)} in {fmt} at {subject.n} images of {subject.name}"
        )

    def _outcomes(self, subject: Subject) -> ModelOutcomes:
        if subject.name not in self._last:
            self._last.clear()
            model = next(
                m for m in self.view.plan.models if _zoo_name(m.spec.options) == subject.name
            )
            self._last[subject.name] = outcomes_of(self.view, model)
        return self._last[subject.name]


def draw_figures(view: View, out: Path) -> tuple[list[Path], list[str]]:
    """Draw the figures that the spec names.

    Args:
        view: The campaign.
        out: Folder to write to.

    Returns:
        The files written, and why figures could not be drawn.

    Raises:
        ValueError: The spec names a figure that does not exist.
    """
    names: tuple[str, ...] = view.plan.spec.options["figures"]
    check_figures(names)
    images: dict[str, int] = {}  # of the first model where two are the same network
    for model in view.plan.models:
        name = _zoo_name(model.spec.options)
        if name is not None:
            images.setdefault(name, len(model.images.x))
    files, remarks = [], []
    for name in names:
        own_networks = FIGURES[name].networks or tuple(images)
        subjects = tuple(Subject(n, count) for n, count in images.items() if n in own_networks)
        study = CollectedStudy(subjects, out / "cache", view)
        command = f"fperr campaign collect {view.plan.spec.path.name}"
        try:
            files += make(name, study, out, command, ("png",))
        except FperrError as fault:
            remarks.append(f"The figure {name} is not drawn: {fault}")
    return files, remarks


def check_figures(names: tuple[str, ...]) -> None:
    """Check that figures exist.

    Raises:
        ValueError: One does not.
    """
    for name in names:
        if name not in FIGURES:
            raise ValueError(f"figures must be out of {', '.join(FIGURES)}, got {name!r}")


def _zoo_name(options: Any) -> str | None:
    """The name of a model in the zoo; None where it is from elsewhere."""
    source = str(options["source"])
    return source if source in zoo.REGISTRY else None


def _missing(words: str) -> MissingResultError:
    return MissingResultError(
        f"the campaign holds no finished {words}: add it to the spec, or run what is missing"
    )


def _is_that(arm: Arm, options: dict[str, Any]) -> bool:
    return all(arm.options.get(name) == value for name, value in options.items())
