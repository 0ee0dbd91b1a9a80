"""Turn mixed tensors into a transformers model without writing them to disk first."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cocktail.checkpoint.kinds import architecture
from cocktail.checkpoint.model import MAIN
from cocktail.errors import PlanError, listed
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import Plan
from cocktail.system.collector import collection_paused
from cocktail.tensors.dtypes import ITEM_SIZE, Bytes, as_tensor, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LARGE = 4 << 20


class ModelInMemory:
    """The tensors of one mixed model, filled block by block and passed on without a copy.

    Its :meth:`write_block` is a sink of :func:`cocktail.mix.stream.stream`. The model is first made
    without weights, so that one that cannot be made is refused before anything is mixed.

    Args:
        trust_remote_code: run the custom code of the model that provides the config.

    Raises:
        PlanError: the model's config cannot be loaded, or transformers has no class for it.
    """

    def __init__(self, plan: Plan, *, trust_remote_code: bool = False) -> None:
        self.plan = plan
        self._trusted = trust_remote_code
        self._skeleton = self._make_skeleton()
        self._bytes = {
            tensor.name: _memory(tensor.nbytes) for tensor in plan.tensors if tensor.part == MAIN
        }

    def write_block(self, tensor: MixedTensor, start: int, block: Bytes) -> None:
        """Put a block in its place."""
        if tensor.part == MAIN:
            first = start * ITEM_SIZE[tensor.dtype]
            self._bytes[tensor.name][first : first + len(block)] = block

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The main part's tensors, by name."""
        shapes = {t.name: (t.dtype, t.shape) for t in self.plan.tensors if t.part == MAIN}
        return {
            name: as_tensor(data, shapes[name][0]).view(shapes[name][1])
            for name, data in self._bytes.items()
        }

    def build(self) -> PreTrainedModel:
        """Make the model of the plan's kind around the tensors.

        Returns:
            The model in eval mode; its parameters are ``self.tensors``.

        Raises:
            PlanError: the class has weights that the mix does not fill and that would stay random.
        """
        model_class = type(self._skeleton)
        with collection_paused(), _quiet():
            model, info = model_class.from_pretrained(
                None,
                config=self._skeleton.config,
                state_dict=self.tensors,
                dtype=torch_dtype(self.plan.dtype),
                output_loading_info=True,
                **self._without_absent_pooler(model_class),
            )
        unfilled = sorted(info["missing_keys"])
        if unfilled:
            raise PlanError(
                [
                    f"{model_class.__name__} has weights that no ingredient has "
                    f"({listed(unfilled)}) - they would be random - name the right model_type"
                ]
            )
        built: PreTrainedModel = model.eval()
        return built

    @collection_paused()
    def _make_skeleton(self) -> PreTrainedModel:
        """Make the model without weights.

        Raises:
            PlanError: its config cannot be loaded.
        """
        import torch  # noqa: PLC0415 - seconds to import
        import transformers  # noqa: PLC0415

        folder = self.plan.donor.main_folder
        auto = self._loader(transformers)
        options = {"trust_remote_code": self._trusted}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            with torch.device("meta"):
                is_auto = auto.__name__ == self.plan.kind.auto_class
                made: PreTrainedModel = (
                    auto.from_config(config, **options) if is_auto else auto(config)
                )
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise PlanError([self._unbuildable(folder, error, self._trusted)]) from None
        return made

    def _loader(self, transformers: Any) -> Any:
        """The kind's Auto class, or the class that the config names if the kind has none, and for
        encoder-decoders, whose speech models have an Auto class of their own.

        Raises:
            PlanError: transformers has no such class.
        """
        kind, name = self.plan.kind, architecture(self.plan.donor.config)
        found = getattr(transformers, name or "-", None)
        if kind.auto_class and (found is None or kind.name != "encoder-decoder"):
            found = getattr(transformers, kind.auto_class)
        if found is None:
            raise PlanError(
                [
                    f"{self.plan.donor.reference} is a {name or 'model without architectures'}, "
                    "which transformers does not have - the mixed model would be returned as that "
                    "class - write it with `cocktail mix`, and load it by its own code"
                ]
            )
        return found

    def _unbuildable(self, folder: Path, error: Exception, trusted: bool) -> str:
        if "auto_map" in self.plan.donor.config and not trusted:
            return (
                f"{folder}: the model comes with its own code - it is run only on request - "
                "read it, then pass trust_remote_code=True"
            )
        reason = str(error).strip().split("\n")[0]
        kind = self.plan.kind.name
        return (
            f"{folder}: transformers cannot build it as {kind} ({reason}) - the mixed model must "
            "load in one of its classes - name another model_type, or update transformers"
        )

    def _without_absent_pooler(self, model_class: type) -> dict[str, bool]:
        """Masked language models are saved without the pooler that their base class would add."""
        if any("pooler." in name for name in self.tensors):
            return {}
        parameters = signature(model_class).parameters
        return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def _memory(size: int) -> Bytes:
    """Memory of its own for a tensor, which is not filled yet.

    NumPy asks for huge pages from 4 MiB on. Where the page cache holds most of the memory, as after
    reading the ingredients, the system takes twice as long to make room for them as to fill small
    ones.
    """
    if size < _LARGE:
        return np.empty(size, np.uint8)
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(mapped, np.uint8)


def put_block(home: torch.Tensor, start: int, block: Bytes, code: str) -> None:
    """Copy a block's bytes, elements of type ``code``, into a tensor from ``start`` on."""
    values = as_tensor(block, code)
    home.view(-1)[start : start + len(values)].copy_(values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loader's own progress bar and report, whose findings become errors here."""
    from transformers.utils import logging  # noqa: PLC0415

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
