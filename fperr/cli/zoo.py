"""`fperr zoo` has no options."""


def zoo_command() -> None:
    """List the networks that the other commands know by name, and whether they are at hand."""
