"""Write a mixed model into a folder beside the output, sync it, and rename it into place.

At every instant the output path is absent, the old folder, or the complete new one.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cocktail.checkpoint.model import MAIN
from cocktail.errors import OutputError
from cocktail.mix.digests import tensor_digest
from cocktail.plan.mixed_tensor import MixedTensor, OutputFile
from cocktail.plan.plan import Plan
from cocktail.system.temporary import LOCK, clear_abandoned, folder_prefix, hold
from cocktail.system.writeback import Writeback
from cocktail.tensors.dtypes import ITEM_SIZE, Bytes, as_tensor, torch_name
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import BLOCK, TensorReader
from cocktail.write.place import standing_problem

_AT_ONCE = 1 << 19  # bytes; for more, the page cache searches long for large runs of memory
_PRETRAINED = re.compile(r"For(MaskedLM|PreTraining)$")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class StagedModel:
    """The new model while it is being written, in a temporary folder beside the output.

    Leaving the context with an exception, or without ``commit``, removes the folder. A killed
    process leaves it behind; the next mix to the same output clears it.
    """

    def __init__(self, plan: Plan, output: Path, *, sync: bool = True) -> None:
        self.plan = plan
        self.output = Path(os.path.realpath(output))
        self.sync = sync
        self.folder = self.output.parent / f"{folder_prefix(self.output)}{os.getpid()}"
        self._files: dict[str, tuple[int, int]] = {}  # tensor key -> descriptor, offset
        self._paths: dict[str, Path] = {}
        self._descriptors: list[int] = []
        self._side: dict[str, dict[str, Bytes]] = {}  # by path, then by name
        self._writeback = Writeback() if sync else None
        self._lock = -1
        self._committed = False

    def __enter__(self) -> StagedModel:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            self.folder.mkdir()
            self._lock = hold(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror})") from None
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._close()
        if self._lock >= 0:
            os.close(self._lock)
        if not self._committed:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            # The disk filled up or failed at a companion, the card or the sync.
            raise _write_error(Path(error.filename or self.folder), error) from None

    def lay_out(self, metadata: Mapping[str, str]) -> None:
        """Write every header and reserve the space, so that a full disk is noticed at once."""
        for file in self.plan.files:
            if not file.is_safetensors:
                empty = {tensor.name: np.empty(tensor.nbytes, np.uint8) for tensor in file.tensors}
                self._side[file.path] = empty
                continue
            self._lay_out_file(file, metadata)

    def _lay_out_file(self, file: OutputFile, metadata: Mapping[str, str]) -> None:
        path = self.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        header, offsets = file.header(metadata)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            self._descriptors.append(descriptor)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, len(header) + file.nbytes)
            else:
                os.ftruncate(descriptor, len(header) + file.nbytes)
        except OSError as error:
            raise _write_error(path, error) from None
        _write_all(path, descriptor, memoryview(header), 0)
        for tensor, offset in zip(file.tensors, offsets, strict=True):
            self._files[tensor.key] = (descriptor, offset)
            self._paths[tensor.key] = path

    @property
    def is_on_disk(self) -> bool:
        """Whether every block goes to a file at once, and none is held until the end."""
        return not self._side

    def write_block(self, tensor: MixedTensor, start: int, block: Bytes) -> None:
        """Write a block to its place; the sink of ``cocktail.mix.stream.stream``.

        Raises:
            OutputError: the disk is full or failed.
        """
        place = self._files.get(tensor.key)
        if place is None:
            first = start * ITEM_SIZE[tensor.dtype]
            self._side[tensor.part][tensor.name][first : first + block.nbytes] = block
            return
        descriptor, offset = place
        position = offset + start * ITEM_SIZE[tensor.dtype]
        _write_all(self.folder, descriptor, block.data, position)
        if self._writeback is not None:
            self._writeback.wrote(descriptor, position, position + block.nbytes)

    def read_digest(self, tensor: MixedTensor) -> str:
        """The digest of a tensor that was written in pieces, and so was never hashed in order."""
        offset = self._files[tensor.key][1]
        info = TensorInfo(tensor.name, tensor.dtype, tensor.shape, self._paths[tensor.key], offset)
        with TensorReader() as reader:
            buffer = np.empty(BLOCK * 8, np.uint8)
            return tensor_digest(reader, info, buffer, lambda _: None)

    def write_companions(self) -> None:
        """Write everything but weights and card: copies, indexes, side tensors and the config."""
        for relative, source in self.plan.companions.items():
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for relative, text in self.plan.texts.items():
            self.write_text(relative, text)
        for file in self.plan.files:
            if not file.is_safetensors:
                self._write_side(file)
        for folder in {str(Path(file.path).parent) for file in self.plan.files}:
            index = self.plan.index(folder)
            if index is not None:
                self.write_json(f"{folder}/model.safetensors.index.json", index)
        config = written_config(self.plan)
        if config and config != self.plan.donor.config:
            relative_main = self.plan.donor.main_folder.relative_to(self.plan.donor.folder)
            self.write_json(f"{relative_main.as_posix()}/config.json", config)

    def _write_side(self, file: OutputFile) -> None:
        import torch  # noqa: PLC0415 - seconds to import

        held = self._side[file.path]
        state = {t.name: as_tensor(held[t.name], t.dtype).view(t.shape) for t in file.tensors}
        buffer = io.BytesIO()  # writing to a file would hide the disk's error behind a RuntimeError
        torch.save(state, buffer)
        (self.folder / file.path).write_bytes(buffer.getvalue())

    def write_text(self, relative: str, text: str) -> None:
        (self.folder / relative).write_text(text, encoding="utf-8")

    def write_json(self, relative: str, value: object) -> None:
        self.write_text(relative, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def commit(self) -> None:
        """Sync everything to disk and rename the folder to the output path.

        Raises:
            OutputError: the output cannot be replaced, or has changed since the mix was planned;
                what exists there is untouched.
        """
        self._close()
        if self.sync:
            for path in self.folder.rglob("*"):
                _sync(path)
        try:
            # As late as possible: without it, other runs cannot see that this one is alive.
            (self.folder / LOCK).unlink()
            if self.sync:
                _sync(self.folder)
        except OSError as error:
            raise OutputError(f"{self.output}: cannot be replaced ({error.strerror})") from None
        self._take_place()
        self._committed = True
        if self.sync:
            _sync(self.output.parent)

    def _take_place(self) -> None:
        """Rename the folder; if something irreplaceable has appeared at the output, keep the mix,
        which may have taken hours, under another name."""
        problem = standing_problem(self.output, overwrite=self.plan.overwrite)
        try:
            if problem is None:
                self._rename()
        except OSError as error:
            problem = f"the output {self.output} cannot be replaced ({error.strerror})"
        if problem is not None:
            kept = self.output.with_name(f"{self.output.name}.cocktail-{os.getpid()}")
            self.folder.rename(kept)
            raise OutputError(f"{problem}; the mix is complete and was kept as {kept}")

    def _rename(self) -> None:
        if not self.output.exists() or not any(self.output.iterdir()):
            self.folder.rename(self.output)  # fails if a file comes in between
        elif _exchange(self.folder, self.output):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            # No atomic exchange here: for an instant the path is absent, and the old model stays
            # complete under the other name until the new one is in place.
            aside = self.output.with_name(f".{self.output.name}.cocktail-old")
            self.output.rename(aside)
            try:
                self.folder.rename(self.output)
            except BaseException:
                aside.rename(self.output)
                raise
            shutil.rmtree(aside, ignore_errors=True)

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _clear_leftovers(self) -> None:
        """Remove what killed runs left beside this output, but nothing of a run that is alive."""
        aside = self.output.with_name(f".{self.output.name}.cocktail-old")
        if aside.is_dir():
            if self.output.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(self.output)
        clear_abandoned(self.output.parent, folder_prefix(self.output))


def disk_bytes(plan: Plan) -> int:
    """The bytes that a mix takes on disk: the weights and the files copied beside them."""
    return plan.output_bytes + sum(path.stat().st_size for path in plan.companions.values())


def written_config(plan: Plan) -> dict[str, Any]:
    """The donor's config with the written type, and without a head that is left out."""
    config = dict(plan.donor.config)
    if not config:
        return config  # static embeddings have none
    if _lost_module(plan):
        # Under its old class name, a loader would give it a random head.
        names = [_PRETRAINED.sub("Model", str(name)) for name in config.get("architectures") or ()]
        config["architectures"] = names
    name = torch_name(plan.dtype)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    if plan.dtype != "F32" or keys[0] in config:
        config |= dict.fromkeys(keys, name)
    return config


def _lost_module(plan: Plan) -> bool:
    """Whether a top-level module of the donor, such as its head, is left out."""
    if plan.recipe.head != "drop":
        return False
    kept = {tensor.name.partition(".")[0] for tensor in plan.tensors if tensor.part == MAIN}
    return any(name.partition(".")[0] not in kept for name in plan.donor.parts[MAIN].tensors)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; return False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(path: Path, descriptor: int, data: memoryview, position: int) -> None:
    while data:
        try:
            count = os.pwritev(descriptor, [data[:_AT_ONCE]], position)
        except OSError as error:
            raise _write_error(path, error) from None
        data = data[count:]
        position += count


def _write_error(path: Path, error: OSError) -> OutputError:
    what = (
        "the disk is full" if error.errno == errno.ENOSPC else f"writing failed ({error.strerror})"
    )
    return OutputError(
        f"{path}: {what} - the old output is untouched - free some space and run again"
    )
