"""What code on a page prints, and whether that is what the page shows."""

import contextlib
import io
import re

NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
FACTOR = 3  # between errors by two CPUs' kernels, as for half formats in the notebooks
POINTS = 5  # three images of 60, which may end otherwise by another CPU's kernels
_FEW_DECIMALS = 3


def printed(code: str, names: dict[str, object]) -> str:
    """What the code prints; its names stay, as in a session."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "page", "exec"), names)
    return output.getvalue()


def words(text: str) -> str:
    """The text with numbers and spaces alike."""
    return " ".join(NUMBER.sub("#", text).split())


def says_the_same(shown: str, fresh: str) -> bool:
    """Whether the words are the same, and the numbers near each other, on any CPU.

    Errors (numbers with an exponent, or below 1 with three decimals) are within a factor of 3;
    others are counts of images and percentages, within 5.
    """
    if words(shown) != words(fresh):
        return False
    return all(map(_is_near, NUMBER.findall(shown), NUMBER.findall(fresh)))


def stands_in(shown: str, fresh: str, *, numbers_vary: bool = False) -> bool:
    """Whether an excerpt says the same as some part of what was printed.

    Args:
        shown: The excerpt.
        fresh: What was printed.
        numbers_vary: Whether any numbers will do, e.g. seconds.
    """
    excerpt, tokens = shown.split(), fresh.split()
    parts = (" ".join(tokens[i : i + len(excerpt)]) for i in range(len(tokens) - len(excerpt) + 1))
    return any(
        words(shown) == words(part) if numbers_vary else says_the_same(shown, part)
        for part in parts
    )


def _is_near(shown: str, fresh: str) -> bool:
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (shown, fresh))
    has_decimals = len(shown.partition(".")[2]) >= _FEW_DECIMALS
    if "e" in shown + fresh or (abs(a) < 1 and has_decimals):
        low, high = sorted((abs(a), abs(b)))
        return a * b >= 0 and high <= FACTOR * low
    return abs(a - b) <= POINTS
