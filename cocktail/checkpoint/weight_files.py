"""The names of files that hold weights, and of files beside them that do not."""

from __future__ import annotations

import re

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Single-file models, in the order in which transformers looks for them."""
INDEX = ".index.json"
"""Appended to one of ``WHOLE``: the list of a sharded model's files."""
SHARDS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
)
"""A model's files, whole or sharded, by format; the preferred one comes first."""
WRITTEN_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
"""The same as shell patterns."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SIDE_TENSORS = ("sparse_linear.pt", "colbert_linear.pt")
"""BGE-M3's heads, in files of their own at the top of the folder."""
TENSOR_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
UNREAD_SUFFIXES = (".gguf", ".h5", ".msgpack")
"""Weight formats that are not read."""
OTHER_FORMATS = ("consolidated", "tf_model", "flax_model", "rust_model", "pytorch_model", "model")
"""Prefixes of the same weights in another format or another number of shards."""
TRAINER_TENSORS = (
    "training_args.bin", "optimizer", "scheduler", "sampler", "dl_state_dict", "rng_state",
    "random_states", "scaler", "trainer_", "custom_checkpoint_",
)  # fmt: skip
"""Prefixes of a trainer's state, which is not part of the model."""
TRAINER_FILES = (
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
    "history.json", "history.png", "optimizer.json", "search.json", "curve.png", "zero_to_fp32.py",
    "latest", "events.out.tfevents.*", "run_config.json", "train_config.json",
)  # fmt: skip
"""Records of how a model was trained, as shell patterns."""
TRAINER_FOLDERS = ("checkpoint-*", "global_step*", "runs", "logs", "wandb", "eval")


def is_trainers(name: str) -> bool:
    """Whether a file holds the state of a training run, not weights of the model."""
    return name.startswith(TRAINER_TENSORS)
