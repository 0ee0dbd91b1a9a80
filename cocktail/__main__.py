"""``python -m cocktail`` is the ``cocktail`` command."""

from cocktail.cli import main

main()
