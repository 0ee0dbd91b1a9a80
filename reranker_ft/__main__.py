"""``python -m reranker_ft`` is the ``reranker-ft`` command."""

from __future__ import annotations

from reranker_ft.cli.main import main

if __name__ == "__main__":
    main(prog_name="reranker-ft")
