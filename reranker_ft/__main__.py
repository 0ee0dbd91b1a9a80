"""``python -m reranker_ft`` is the ``reranker-ft`` command."""

from __future__ import annotations

import atexit
import gc

from reranker_ft.cli.main import main


def run() -> None:
    """Run the command, and save a second and a half of garbage collection.

    Importing torch makes a million lasting objects, which the collector would scan over and over,
    and all of them once more at the end.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    main(prog_name="reranker-ft")


if __name__ == "__main__":
    run()
