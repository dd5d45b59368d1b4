"""`python -m camkit` is `camkit`."""

from camkit.cli import main

main()
