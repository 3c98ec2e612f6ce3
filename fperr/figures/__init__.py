"""The papers' figures and tables, and ours, from real networks."""

from fperr.figures.gallery import FIGURES, make
from fperr.figures.study import Study, Subject, paper_size

__all__ = ["FIGURES", "Study", "Subject", "make", "paper_size"]
