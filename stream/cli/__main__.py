"""``python -m stream.cli``: the same as the command ``foreclick``."""

from stream.cli import main

main()
