"""Write beside a language model what makes it a ``CrossEncoder`` of sentence-transformers 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reranker_ft.model.prompts import Prompt, start_text
from reranker_ft.model.readout import Readout

_SCORE = "1_LogitScore"
_MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
    },
    {
        "idx": 1,
        "name": "1",
        "path": _SCORE,
        "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    },
]


def write_stack(folder: Path, readout: Readout, tokenizer: Any) -> None:
    """Write the modules and the chat template.

    Scores are then raw log-odds there, too. They are equal where the tokenizer splits the prompt
    at its parts: sentence-transformers makes tokens of the whole text at once.

    Args:
        folder: Holds the model.
        tokenizer: Is saved there again, with the prompt as its chat template.
    """
    method = {"method": "forward", "method_output_name": "logits"}
    modality: dict[str, Any] = {"text": method}
    if readout.prompt is not None:
        modality["message"] = {**method, "format": "flat"}
        before = tokenizer.chat_template
        tokenizer.chat_template = chat_template(readout.prompt, tokenizer)
        tokenizer.save_pretrained(folder)
        tokenizer.chat_template = before
    (folder / _SCORE).mkdir(exist_ok=True)
    files: dict[str, Any] = {
        "modules.json": _MODULES,
        f"{_SCORE}/config.json": {
            "true_token_id": readout.yes,
            "false_token_id": readout.no,
            "module_input_name": "causal_logits",
        },
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": modality,
            "module_output_name": "causal_logits",
        },
        "config_sentence_transformers.json": {
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def chat_template(prompt: Prompt, tokenizer: Any) -> str:
    """Return a chat template that writes the prompt around messages of a query and a document."""
    before = start_text(tokenizer, prompt) + prompt.filled("".join(prompt.before)) + prompt.lead
    between = "".join(prompt.between) + prompt.passage
    texts = {
        role: f"messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first"
        for role in ("query", "document")
    }
    parts = (before, texts["query"], between, texts["document"], "".join(prompt.after))
    return "".join(
        f"{{{{ {part if number % 2 else json.dumps(part, ensure_ascii=False)} }}}}"
        for number, part in enumerate(parts)
    )
