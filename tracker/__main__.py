"""`python -m tracker`: the same as the installed command."""

from tracker.cli import main

main()
