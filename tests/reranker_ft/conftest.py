"""Tiny models and tokenizers, built from configs in the test process: no network, no files kept."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from reranker_ft.model.quiet_bars import bars_on_terminals_only

MAX_POSITIONS = 64
WORDS = [
    *("the", "a", "of", "in", "is", "was", "what", "who", "when", "where", "how", "which"),
    *("red", "green", "blue", "apple", "river", "stone", "bridge", "garden", "winter", "summer"),
    *("bird", "horse", "king", "city", "north", "south", "east", "west", "water", "fire", "light"),
]
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    # RoBERTa's order: the padding token is id 1, so positions start at 2.
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows WORDS and spells out all other ASCII text."""
    family = "bert" if kind == "bert" else "roberta"
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*SPECIAL[family], *characters, *(f"##{c}" for c in characters), *WORDS]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    unknown = "[UNK]" if family == "bert" else "<unk>"
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()  # FlagReranker goes from tokens back to text
    if family == "bert":
        first, last, pad, mask = "[CLS]", "[SEP]", "[PAD]", "[MASK]"
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        first, last, pad, mask = "<s>", "</s>", "<pad>", "<mask>"
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        inputs = ["input_ids", "attention_mask"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        pad_token=pad,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        model_input_names=inputs,
        model_max_length=MAX_POSITIONS,
    )


def make_model(
    kind: str = "bert", *, seed: int = 0, dropout: float = 0.0, num_labels: int = 1
) -> torch.nn.Module:
    """A two-layer cross-encoder in evaluation mode."""
    tokenizer = make_tokenizer(kind)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "num_labels": num_labels,
        # The usual 0.02 gives scores that hardly differ in a model this small.
        "initializer_range": 0.2,
    }
    if kind == "bert":
        config = BertConfig(max_position_embeddings=MAX_POSITIONS, **common)
    else:
        family = {"roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}[kind]
        config = family(max_position_embeddings=MAX_POSITIONS + 2, type_vocab_size=1, **common)
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config).eval()


def make_byte_tokenizer(*, pad: str | None = "<pad>", begin: bool = False) -> Any:
    """A decoder's tokenizer: a token per byte, and nothing between the texts of a pair."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_decoder(head: bool = True, **options: Any) -> torch.nn.Module:
    """A two-layer Llama for `make_byte_tokenizer`, with a reranking head or without one."""
    sizes = {
        **{"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
        **{"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2},
    }
    config = LlamaConfig(**{**sizes, "num_labels": 1, **options})
    torch.manual_seed(0)
    return (LlamaForSequenceClassification if head else LlamaForCausalLM)(config).eval()


def save(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    """The folder, with a model and its tokenizer in it."""
    with bars_on_terminals_only():
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """`model_folders(kind)`: a folder with a tiny reranker; do not write there."""
    folders: dict[str, Path] = {}

    def folder(kind: str = "bert", *, dropout: float = 0.0) -> Path:
        key = f"{kind}-{dropout}"
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(key)
            with bars_on_terminals_only():  # a test may look at what is written to stderr
                make_model(kind, dropout=dropout).save_pretrained(folders[key])
            make_tokenizer(kind).save_pretrained(folders[key])
        return folders[key]

    return folder


def toy_rows(count: int, *, negatives: int = 5) -> list[dict[str, object]]:
    """Queries whose positive repeats their two words; lengths differ from passage to passage."""
    rows = []
    for i in range(count):
        first, second = (WORDS[place % len(WORDS)] for place in (i, 7 * i + 3))
        others = [WORDS[(i + 5 * k) % len(WORDS)] for k in range(1, negatives + 1)]
        rows.append(
            {
                "query": f"what is {first} {second}",
                "pos": [f"the {first} is {second} " + "water " * (i % 4)],
                "neg": [
                    f"{word} number {i} " + "stone " * (k % 3) for k, word in enumerate(others)
                ],
            }
        )
    return rows


def toy_pairs(count: int = 6) -> list[tuple[str, str]]:
    """The pairs of `toy_rows`."""
    return [(row["query"], text) for row in toy_rows(count) for text in row["pos"] + row["neg"]]


def small(model: Any, data: Any, output: Any, *more: Any) -> list[str]:
    """The flags of a training run of a second."""
    return [
        *("--model_name_or_path", str(model), "--train_data", str(data), "--output_dir"),
        *(str(output), "--train_group_size", "4", "--max_length", "48", "--num_train_epochs", "1"),
        *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
        *map(str, more),
    ]


def refusals(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr that say why the program ends."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("reranker-ft: ")]


@pytest.fixture
def write_jsonl(tmp_path):
    """`write_jsonl(rows, name)`: the path of a new data file."""

    def write(rows: list[dict[str, object]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def results(model_folders, write_jsonl):
    """Two models compared on two data sets."""
    from reranker_ft.evaluate.compare import compare

    models = [str(model_folders("bert")), str(model_folders("roberta"))]
    data = [write_jsonl(toy_rows(12), "a.jsonl"), write_jsonl(toy_rows(9), "b.jsonl")]
    return compare(models, data, reranker_options={"devices": "cpu"})
