"""The papers' figures, and ours, from real networks."""

from fperr.figures.gallery import FIGURES, make
from fperr.figures.study import Study, Subject

__all__ = ["FIGURES", "Study", "Subject", "make"]
