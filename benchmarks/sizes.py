"""What models of known shapes take: to mix, by the plan, and to train and search, by formula.

    python benchmarks/sizes.py

No weights are downloaded or made. Each model is built on the meta device from its config, and
written as safetensors files with a true header over a hole, which take some kilobytes of the disk;
`cocktail mix --dry-run` then says what mixing them takes. Its figures are estimates from headers,
not measurements.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XLMRobertaConfig,
)

LORA_RANK = 64  # the default of reranker-ft
STORED = {torch.float32: ("fp32", "F32"), torch.bfloat16: ("bf16", "BF16")}


def xlm_roberta(**shape: int) -> XLMRobertaConfig:
    """The config of a bge reranker, but for its shape."""
    return XLMRobertaConfig(
        vocab_size=250002, type_vocab_size=1, num_labels=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, **shape,
    )  # fmt: skip


def qwen3(**shape: int) -> Qwen3Config:
    """The config of a Qwen3-Reranker, but for its shape."""
    return Qwen3Config(
        vocab_size=151669, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        tie_word_embeddings=True, **shape,
    )  # fmt: skip


LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip
MODELS = {
    "bge-reranker-base": xlm_roberta(max_position_embeddings=514),
    "bge-reranker-large": xlm_roberta(max_position_embeddings=514, **LARGE),
    "bge-reranker-v2-m3": xlm_roberta(max_position_embeddings=8194, **LARGE),
    "Qwen3-Reranker-0.6B": qwen3(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=3072
    ),
    "Qwen3-Reranker-4B": qwen3(
        hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, intermediate_size=9728
    ),
}


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: of all, of word embeddings, and of adapters on all linear layers."""

    all: int
    words: int
    adapters: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of the mix")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            rows[name] = figures(config, Path(folder) / name, args.threads)
    print_tables(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def figures(config: Any, folder: Path, threads: int) -> dict[str, float]:
    """All figures of a model, in bytes."""
    is_language_model = isinstance(config, Qwen3Config)
    kind = AutoModelForCausalLM if is_language_model else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(config)
    counts = counted(model)
    row: dict[str, float] = {"parameters": counts.all}
    for dtype, (name, _) in STORED.items():
        trio = [folder / f"{name}-{i}" for i in range(3)]
        for each in trio:
            write(model, dtype, each)
        row[f"files in {name}"] = planned(trio, "linear", threads)["output_bytes"]
    # The sum runs in fp32 whatever the files hold: memory is the same for both.
    for method, title in (("linear", "memory, average"), ("ties", "memory, TIES")):
        row[title] = planned(trio, method, threads)["peak_memory_bytes"]
    cast = 2 * (counts.all - counts.words)
    return row | {
        "train, fp32": 16 * counts.all,
        "train, fp16 or bf16": 16 * counts.all + cast,
        "train, LoRA": 4 * counts.all + 16 * counts.adapters,
        "search, fp32": 4 * (counts.all if is_language_model else counts.all - counts.words),
    }


def counted(model: nn.Module) -> Counts:
    """Count on the meta device; tied embeddings count once."""
    head = ("classifier", "lm_head")
    linear = [
        m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith(head)
    ]
    return Counts(
        all=sum(parameter.numel() for parameter in model.parameters()),
        words=model.get_input_embeddings().weight.numel(),
        adapters=LORA_RANK * sum(layer.in_features + layer.out_features for layer in linear),
    )


def write(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write config, a tokenizer of one word, and a file with a true header over a hole."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    word = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=word, unk_token="<unk>").save_pretrained(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, parameter in model.named_parameters():
        start, end = end, end + parameter.numel() * dtype.itemsize
        header[name] = {
            "dtype": STORED[dtype][1], "shape": list(parameter.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def planned(trio: list[Path], method: str, threads: int) -> dict[str, Any]:
    """The plan of a mix of the first two; the third is the base of methods that need one."""
    command = [
        sys.executable,
        "-m",
        "cocktail",
        "mix",
        *map(str, trio[:2]),
        "--weights",
        "0.5",
        "0.5",
    ]
    if method != "linear":
        command += ["--method", method, "--base", str(trio[2]), "--parameter", "density=0.5"]
    command += ["--threads", str(threads), "--dry-run", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def print_tables(rows: dict[str, dict[str, float]]) -> None:
    groups = {
        "mixing": ("files in fp32", "files in bf16", "memory, average", "memory, TIES"),
        "training and searching": (
            "train, fp32",
            "train, fp16 or bf16",
            "train, LoRA",
            "search, fp32",
        ),
    }
    for title, columns in groups.items():
        print(f"\n{title}, GB:\n")
        print("| model | parameters | " + " | ".join(columns) + " |")
        print("|---|" + "---|" * (len(columns) + 1))
        for name, row in rows.items():
            cells = [f"{row[column] / 1e9:.2f}" for column in columns]
            print(f"| {name} | {row['parameters'] / 1e6:,.0f} M | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
