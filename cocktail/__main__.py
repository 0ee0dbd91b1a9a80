"""``python -m cocktail`` is the ``cocktail`` command."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress

from cocktail.cli.main import main


def run() -> None:
    """Run the command, and save half a second of starting up and shutting down.

    Importing torch makes a million lasting objects, which the collector would scan over and over
    and the interpreter would destroy one by one at the end. So the process exits as soon as
    everything that must happen at the end has happened.
    """
    gc.set_threshold(100_000, 50, 100)
    try:
        main()
    except SystemExit as done:
        code = done.code
    else:
        code = 0
    atexit._run_exitfuncs()  # temporary folders are removed, logs are closed
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    run()
