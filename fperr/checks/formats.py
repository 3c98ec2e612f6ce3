"""Checks of formats: names of fperr's, and records of one's own."""

from collections.abc import Sequence

from fperr.checks.values import choice, distinct_names
from fperr.formats import FORMATS, Format, format_named
from fperr.vocabulary import FORMAT_NAMES


def format_of(name: str, value: object, options: Sequence[str] = FORMAT_NAMES) -> Format:
    """The format of a name, or the record itself.

    Args:
        name: Name of the argument.
        value: The argument.
        options: Names that the argument may have.

    Raises:
        TypeError, ValueError: It is neither a name of a format nor a record, or a record with the
            name of another one.
    """
    if not isinstance(value, Format):
        return format_named(choice(name, value, options))
    if FORMATS.get(value.name, value) != value:
        raise ValueError(
            f"{name} {value.name!r} is a format of fperr's own, got another record of that name: "
            "give yours another name, by dataclasses.replace(yours, name=...)"
        )
    return value


def formats_of(name: str, values: object) -> list[Format]:
    """The formats of a sequence of distinct names and records that is not empty.

    Raises:
        TypeError, ValueError: It is none; see `format_of`.
    """
    given = values
    if isinstance(values, Sequence) and not isinstance(values, str):
        given = [value.name if isinstance(value, Format) else value for value in values]
    distinct_names(name, given)
    assert isinstance(values, Sequence)
    return [format_of(name, v) if isinstance(v, Format) else format_named(v) for v in values]
