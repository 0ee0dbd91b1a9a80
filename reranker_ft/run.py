"""`torchrun -m reranker_ft.run`: the command line of training."""

from __future__ import annotations

import logging
import os
import sys

from reranker_ft.errors import ArgumentError, RerankerError


def _process_index() -> int:
    """This process among all, as torchrun numbers them."""
    return int(os.environ.get("RANK", "0"))


def _log_to_stderr() -> None:
    """Shows our notes and warnings, of the first process; other libraries keep their own ways."""
    package = logging.getLogger("reranker_ft")
    if not package.hasHandlers():
        package.setLevel(logging.INFO if _process_index() == 0 else logging.ERROR)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _leave_group() -> None:
    """Ends the threads that connect the processes: left alone, they now and then abort the exit."""
    import torch.distributed as dist  # noqa: PLC0415

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    """Trains as the flags say; returns the exit code.

    A RerankerError ends as one line on stderr, from the first process only: exit code 2 for
    arguments, 1 for data, models and what the system refuses (a full disk). So does Ctrl-C, with
    exit code 130.
    """
    _log_to_stderr()
    try:
        # Seconds to import, in which Ctrl-C ends like later on.
        from reranker_ft.train.flags import parse  # noqa: PLC0415
        from reranker_ft.train.train import run  # noqa: PLC0415

        run(*parse(argv))
        _leave_group()
    except RerankerError as error:
        if _process_index() == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ArgumentError) else 1
    except OSError as error:
        if _process_index() == 0:
            sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        if _process_index() == 0:
            sys.stderr.write("reranker-ft: interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
