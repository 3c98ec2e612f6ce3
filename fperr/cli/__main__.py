"""`python -m fperr.cli`."""

from fperr.cli.app import main

main()
