"""Numbers as the report page writes them: 1.8 × 10⁻⁷, which no line break takes apart."""

import math
import re

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WITH_EXPONENT = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]\d+)(?!\w)")
_NARROW = "\u202f"  # a narrow space without a line break


def number(value: float, digits: int = 2) -> str:
    """A number with a few digits; a dash for NaN.

    Args:
        value: The number.
        digits: Significant digits.

    Example:
        >>> from fperr.report.numbers import number
        >>> number(0.078), number(float("nan"))
        ('0.078', '–')
    """
    return "–" if math.isnan(value) else typeset(f"{value:.{digits}g}")


def typeset(text: str) -> str:
    """The text, with every number such as 1.8e-07 as a power of ten.

    Example:
        >>> from fperr.report.numbers import typeset
        >>> print(typeset("an error of 1e-07").replace(chr(0x202F), " "))
        an error of 10⁻⁷
    """
    return _WITH_EXPONENT.sub(_power, text)


def _power(match: re.Match[str]) -> str:
    factor, exponent = match[1], str(int(match[2])).translate(_SUPERSCRIPTS)
    if factor == "1":
        return f"10{exponent}"
    return f"{factor.replace('-', '−')}{_NARROW}×{_NARROW}10{exponent}"


def joined(words: list[str]) -> str:
    """An enumeration of the words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
