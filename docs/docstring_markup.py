"""Makes reStructuredText of a docstring, in which `(batch, *shape)` and |v| are plain text."""

import re
from collections.abc import Iterable, Iterator

# bold and emphasised words stay; lone stars and bars, and underscores at the end of a word do not
_MARKUP = re.compile(
    r"(?<![\w*])\*\*\w[^*]*\*\*(?!\w)|(?<![\w*])\*\w[^*]*\w\*(?![\w*])|[*|]|(?<=\w)_(?!\w)"
)
_ARGUMENT = re.compile(r"\s*\*{1,2}\w+:")  # "**inputs: ...", which napoleon escapes
_BULLET = re.compile(r"\s*\* ")


def restructured(lines: Iterable[str]) -> Iterator[str]:
    """The lines with what is no markup escaped; examples and literal blocks stay as they are."""
    literal: int | None = None  # indentation of the line that announces a literal block
    is_example = is_code = False
    for line in lines:
        text = line.lstrip()
        indent = len(line) - len(text)
        if literal is not None and text and indent <= literal:
            literal = None
        if not text:
            is_example = is_code = False
        is_example |= text.startswith(">>>")
        if literal is not None or is_example:
            yield line
            continue
        escaped, is_code = _escaped(line, is_code=is_code)
        yield escaped
        if line.endswith("::"):
            literal = indent


def _escaped(line: str, *, is_code: bool) -> tuple[str, bool]:
    """The line, and whether code in backticks goes on in the next one."""
    head = _ARGUMENT.match(line) or _BULLET.match(line)
    start = head.end() if head else 0
    parts = line[start:].split("`")
    for i, part in enumerate(parts):
        if is_code == bool(i % 2):  # text, not code
            parts[i] = _MARKUP.sub(_one, part)
        elif part.startswith("."):  # a method, of which there may be others of the same name
            parts[i] = f"`{part}`"
    return line[:start] + "`".join(parts), is_code == bool(len(parts) % 2)


def _one(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if len(match[0]) == 1 else match[0]


def with_plain_types(lines: Iterable[str]) -> Iterator[str]:
    """The lines with `object_` and the like escaped in the types of attributes."""
    for line in lines:
        yield line.replace("_]", "\\_]") if line.lstrip().startswith(":vartype") else line
