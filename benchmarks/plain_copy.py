"""The floor of mixing: read every byte of every input, write the bytes of one output.

    python benchmarks/plain_copy.py A B --output C --block 1048576 --threads 2

No arithmetic: blocks are read with preadv into one reused buffer per thread, and those of the
first input are written with pwritev. The last line printed is the copying's own time as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--block", type=int, default=1 << 20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    started = time.perf_counter()
    for shard in sorted(options.inputs[0].glob("*.safetensors")):
        sources = [folder / shard.name for folder in options.inputs]
        copy(sources, options.output / shard.name, options.block, options.threads)
    print(json.dumps({"seconds": time.perf_counter() - started}))


def copy(sources: list[Path], target: Path, block: int, threads: int) -> None:
    size = sources[0].stat().st_size
    inputs = [os.open(source, os.O_RDONLY) for source in sources]
    output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.posix_fallocate(output, 0, size)

    def copy_blocks(first: int) -> None:
        buffer = memoryview(bytearray(block))
        for offset in range(first * block, size, threads * block):
            part = buffer[: min(block, size - offset)]
            for source in reversed(inputs):
                move(os.preadv, source, part, offset)
            move(os.pwritev, output, part, offset)

    workers = [threading.Thread(target=copy_blocks, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for descriptor in (*inputs, output):
        os.close(descriptor)


def move(call, descriptor: int, part: memoryview, offset: int) -> None:
    """preadv or pwritev until `part` is through: one call may move less than it was asked to."""
    while part:
        moved = call(descriptor, [part], offset)
        if moved == 0:
            raise OSError(f"file ended at byte {offset}")
        part, offset = part[moved:], offset + moved


if __name__ == "__main__":
    main()
