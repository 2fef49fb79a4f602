"""`python -m node`: the same as the installed command."""

from node.cli import main

main()
