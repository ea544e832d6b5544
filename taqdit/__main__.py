"""`python -m taqdit`: the `taqdit` command."""

from taqdit.cli.verbs import main

main()
