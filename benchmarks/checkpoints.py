"""Synthetic Llama-shaped bf16 checkpoints that every tool of the comparison accepts.

    python benchmarks/checkpoints.py --size 1.2b --ingredients 2

The values are random bits with the exponent held to 2^-15 .. 2^-8: a gigabyte takes about a
second, the magnitudes look like weights, and sums of two values do get rounded.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORK = Path(__file__).parent / ".work"
SHARD_BYTES = 1_000_000_000
BF16_BYTES = 2

# Bits of a bf16: sign 1, exponent 8, mantissa 7. Sign, the three low exponent bits and the mantissa
# stay random; the rest of the exponent is that of 2^-15.
RANDOM_BITS = np.uint16(0x83FF)
FIXED_BITS = np.uint16(0x3800)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes in the order transformers saves them; the head is not tied."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden)
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.hidden,),
                prefix + "mlp.down_proj.weight": (self.hidden, self.intermediate),
                prefix + "mlp.gate_proj.weight": (self.intermediate, self.hidden),
                prefix + "mlp.up_proj.weight": (self.intermediate, self.hidden),
                prefix + "post_attention_layernorm.weight": (self.hidden,),
                prefix + "self_attn.k_proj.weight": (kv, self.hidden),
                prefix + "self_attn.o_proj.weight": (self.hidden, self.hidden),
                prefix + "self_attn.q_proj.weight": (self.hidden, self.hidden),
                prefix + "self_attn.v_proj.weight": (kv, self.hidden),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


SIZES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512),
    "1.2b": Shape(2048, 8192, 18, 32, 8, 32_000),
    "6b": Shape(4096, 14_336, 27, 32, 8, 32_000),  # five times the bytes, for the memory check
    "4000-tensors": Shape(64, 128, 444, 4, 2, 512),
}


def make(size: str, ingredients: int, root: Path = WORK) -> list[Path]:
    """Return the folders of `ingredients` different checkpoints; the missing ones are written."""
    folders = [root / f"llama-{size}-{i}" for i in range(ingredients)]
    for seed, folder in enumerate(folders):
        # config.json comes last: a folder that has it is whole.
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(folder, SIZES[size], seed)
            write_tokenizer(folder)
            write_config(folder, SIZES[size])
    return folders


def write_weights(folder: Path, shape: Shape, seed: int) -> None:
    shards = shard_names(shape)
    weight_map = {}
    random = np.random.Generator(np.random.SFC64(seed))
    shapes = shape.tensors()
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file_name)
        tensors = {name: random_bf16(random, shapes[name]) for name in names}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
    total = shape.parameters() * BF16_BYTES
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def shard_names(shape: Shape) -> list[list[str]]:
    """Cut the tensor list, in its order, into shards of at most SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, dims in shape.tensors().items():
        size = int(np.prod(dims)) * BF16_BYTES
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def random_bf16(random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    bits = random.integers(0, 1 << 16, shape, np.uint16)
    np.bitwise_and(bits, RANDOM_BITS, out=bits)
    np.bitwise_or(bits, FIXED_BITS, out=bits)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: 256 bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def write_config(folder: Path, shape: Shape) -> None:
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # transformers 4 reads the first key, transformers 5 the second.
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.2b")
    parser.add_argument("--ingredients", type=int, default=2)
    options = parser.parse_args()
    shape = SIZES[options.size]
    print(f"{shape.parameters():,} parameters, {len(shape.tensors()):,} tensors, {asdict(shape)}")
    for folder in make(options.size, options.ingredients):
        print(folder)


if __name__ == "__main__":
    main()
