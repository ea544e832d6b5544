"""`python -m taqdit.cli`."""

from taqdit.cli.verbs import main

main()
