"""`python -m receiver`: the same as the command."""

from receiver.cli import main

main()
