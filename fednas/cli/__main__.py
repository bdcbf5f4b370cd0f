"""`python -m fednas.cli`: the same as the installed command `fednas`."""

from fednas.cli import main

main()
