"""The line of a TOML file on which a key stands."""

import tomllib
from collections.abc import Sequence


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    r"""The number of the line, from 1, on which the value at a path begins; None if there is none.

    It is the line after the last beginning of the file that is TOML without the value, so that
    values of several lines, quoted keys and inline tables need no rules of their own.

    Args:
        text: Text of the file, which is TOML.
        path: Keys, and numbers of the tables of an array, from 0, that lead to the value.

    Example:
        >>> line_of('[[models]]\n# the first\nname = [\n  "a",\n]\n', ("models", 0, "name"))
        3
    """
    lines = text.splitlines(keepends=True)
    before = 0  # the lines of the last beginning that parses, and does not hold the value
    for count in range(len(lines) + 1):
        try:
            content: object = tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        if _holds(content, path):
            return _first_that_says_something(lines, before)
        before = count
    return None


def _first_that_says_something(lines: Sequence[str], start: int) -> int:
    for number, line in enumerate(lines[start:], start + 1):
        if line.strip() and not line.lstrip().startswith("#"):
            return number
    return start + 1


def _holds(content: object, path: Sequence[str | int]) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(content, list) or len(content) <= step:
                return False
            content = content[step]
        elif not isinstance(content, dict) or step not in content:
            return False
        else:
            content = content[step]
    return True
