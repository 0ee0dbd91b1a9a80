"""Declare all arguments, once: the help text of a field is its only documentation."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_flash_attn_2_available

from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError
from reranker_ft.model.loss import LOSSES
from reranker_ft.progress import on_terminal
from reranker_ft.train.hardware import check_processes, settle_device, settle_precision

DEFAULT_MAX_LENGTH = 512
DEFAULT_METRIC = "ndcg@10"
# Flags of which torch and transformers say too late, or not at all, that they cannot be meant.
RANGES = {
    "per_device_train_batch_size": (1, 2**31),
    "gradient_accumulation_steps": (1, 2**31),
    "dataloader_num_workers": (0, 2**31),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "adam_beta1": (0, 1 - 1e-9),
    "adam_beta2": (0, 1 - 1e-9),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, math.inf),
    "num_train_epochs": (0, 1e9),
    "distillation_weight": (0, 1e6),
    "max_eval_queries": (1, 2**31),
    "early_stopping_patience": (1, 2**31),
    "warmup_ratio": (0, 1 - 1e-9),
}
FLASH_ATTENTION = "flash_attention_2"
LAYERWISE_TYPES = ("from_raw_model", "from_finetuned_model")  # FlagEmbedding's names
MODEL_TYPES = ("encoder", "decoder", *LAYERWISE_TYPES)
HEAD_TYPES = ("raw", "simple", "complex")
METRICS = ("ndcg@10", "mrr@10", "map", "recall@1", "recall@5", "recall@10", "loss")


def _flag(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model to start from, and how it is loaded."""

    model_name_or_path: str = _flag(
        "A reranker to train further, or an encoder that gets a fresh one-logit head: "
        "a folder or a Hub id.",
        MISSING,
    )
    config_name: str | None = _flag("Config to use if not the model's own.")
    tokenizer_name: str | None = _flag("Tokenizer to use if not the model's own.")
    cache_dir: str | None = _flag("Where downloads from the Hub are kept.")
    token: str | None = _flag("Access token of the Hub; HF_TOKEN is used if it is set.")
    trust_remote_code: bool = _flag("Run code that comes with the model.", False)
    use_fast_tokenizer: bool = _flag("Use the fast (Rust) tokenizer where there is one.", True)
    model_type: str = _flag(
        "encoder: a model with a sequence classification head, which is fresh if there is none; "
        "decoder: a language model, scored by the logit of its answer to a prompt; "
        "from_raw_model, from_finetuned_model: such a model of which every layer from start_layer "
        "on learns to score.",
        "encoder",
    )
    start_layer: int | None = _flag(
        "The first layer of a decoder that learns to score. Default: 8 for the layerwise types."
    )
    head_multi: bool = _flag(
        "A head for each layer: kept where the model's own code has them.", False
    )
    head_type: str = _flag(
        "raw, simple or complex: kept where the model's own code has such heads; else a layer is "
        "read at the answer's row of the output embedding, whichever is named.",
        "simple",
    )
    attn_implementation: str | None = _flag(
        "Attention of the model; sdpa if not given, where the model has it."
    )
    use_flash_attn: bool = _flag(
        "Use FlashAttention 2 where it is installed; without it, sdpa.", False
    )
    prompt_template: str | None = _flag(
        "What a decoder reads: bge-llm, qwen3-reranker, mxbai-rerank-v2, or a text with {query} "
        "and {passage}. Default: what the model says, else bge-llm."
    )
    yes_token: str | None = _flag("Answer of a relevant passage to a prompt_template of one's own.")
    no_token: str | None = _flag("The other answer; without it the score is the logit of the yes.")
    use_lora: bool | None = _flag(
        "Train low-rank adapters (LoRA) and the head instead of all weights. Default: for decoders "
        "of more than a billion parameters."
    )
    qlora: bool = _flag(
        "Hold the weights of a decoder in 4 bits and train adapters (QLoRA); needs bitsandbytes.",
        False,
    )
    from_peft: str | None = _flag("Adapters of a decoder to train further.")
    raw_peft: list[str] | None = _flag("Adapters that are merged into a decoder before training.")
    modules_to_save: list[str] | None = _flag(
        "Modules of a decoder that are trained and saved whole, with LoRA."
    )
    lora_rank: int = _flag("Rank of the adapters.", 64)
    lora_alpha: float = _flag("Scale of the adapters: alpha / rank.", 16.0)
    lora_dropout: float = _flag("Dropout before the adapters.", 0.1)
    target_modules: list[str] | None = _flag(
        "Modules that get an adapter; all linear layers but the head's if not given."
    )
    save_merged_lora_model: bool = _flag(
        "Save the model with the adapters merged in, not the adapters.", False
    )

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ArgumentError(
                f"model_type is {self.model_type!r} - a reranker has a head or answers a prompt - "
                f"use one of {', '.join(MODEL_TYPES)}"
            )
        if self.head_type not in HEAD_TYPES:
            raise ArgumentError(
                f"head_type is {self.head_type!r} - there are {', '.join(HEAD_TYPES)} - choose one"
            )
        if self.model_type in LAYERWISE_TYPES and self.start_layer is None:
            self.start_layer = 8
        if self.start_layer is not None and not (self.decodes and self.start_layer >= 1):
            raise ArgumentError(
                f"start_layer is {self.start_layer} with model_type {self.model_type} - it counts "
                "the layers of a decoder from 1 - use --model_type decoder and 1 or more"
            )
        if self.qlora and (self.use_lora is False or self.save_merged_lora_model):
            raise ArgumentError(
                "qlora is set with use_lora False or save_merged_lora_model - weights of 4 bits "
                "take adapters and no changes - leave out one of them"
            )
        if self.use_flash_attn and self.attn_implementation not in (None, FLASH_ATTENTION):
            raise ArgumentError(
                f"use_flash_attn and attn_implementation {self.attn_implementation!r} are both set "
                "- a model has one attention - leave out one of them"
            )
        if self.lora_rank < 1:
            raise ArgumentError(
                f"lora_rank is {self.lora_rank} - it counts dimensions - use 1 or more"
            )
        if not 0 < self.lora_alpha < math.inf:
            raise ArgumentError(
                f"lora_alpha is {self.lora_alpha} - adapters are scaled by it - use a number above "
                "0, like 16"
            )
        if not 0 <= self.lora_dropout < 1:
            raise ArgumentError(
                f"lora_dropout is {self.lora_dropout} - it is a share - use 0 up to 1, like 0.1"
            )

    @property
    def decodes(self) -> bool:
        """Return whether a language model is asked for."""
        return self.model_type != "encoder"

    @property
    def attention(self) -> str | None:
        """Return what ``attn_implementation`` of from_pretrained is to be."""
        if self.use_flash_attn and is_flash_attn_2_available():
            return FLASH_ATTENTION
        return self.attn_implementation

    @property
    def hub(self) -> dict[str, Any]:
        """Return what every ``from_pretrained`` of the run is told."""
        return {
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def saves_adapters(self) -> bool:
        """Whether the output is adapters, not a whole model."""
        return bool(self.use_lora) and not self.save_merged_lora_model


@dataclass
class DataArguments:
    """What to train on, and how texts become groups of token ids."""

    train_data: list[str] = _flag(
        "JSONL files, or folders of them: query, pos and neg, and optionally "
        "pos_scores, neg_scores, prompt.",
        MISSING,
    )
    train_group_size: int = _flag(
        "Passages per query and step: one positive, the rest negatives drawn anew every epoch.", 8
    )
    in_batch_negatives: int = _flag(
        "Also score each query against this many passages of the other queries in the batch, "
        "over all processes; never one of its own positives.",
        0,
    )
    max_length: int | None = _flag(
        "Maximum tokens of a pair, special tokens included; the passage is cut. Never more than "
        "the model has positions for. Default: query_max_length + passage_max_length if both are "
        "given, else 512."
    )
    query_max_length: int | None = _flag("Maximum tokens of the query. Default: 3/4 of max_length.")
    passage_max_length: int | None = _flag(
        "Maximum tokens of the passage. Default: what the query leaves."
    )
    pad_to_multiple_of: int | None = _flag("Pad micro-batches to a multiple of this many tokens.")
    micro_batch_tokens: int | None = _flag(
        "Maximum padded tokens per forward pass; the step's pairs are sorted by length and cut "
        "into such micro-batches, which changes time and memory but not the result. Default: 2048 "
        "on a CPU, 16384 elsewhere."
    )
    max_example_num_per_dataset: int = _flag(
        "Take a random sample of at most this many lines of each file.", 100_000_000
    )
    query_instruction_for_rerank: str | None = _flag(
        "Instruction for the query; a line's own `prompt` takes precedence over it."
    )
    query_instruction_format: str = _flag("How instruction and query are put together.", "{}{}")
    passage_instruction_for_rerank: str | None = _flag(
        "Instruction for the passage; a line's own `passage_prompt` takes precedence over it."
    )
    passage_instruction_format: str = _flag("How instruction and passage are put together.", "{}{}")
    shuffle_ratio: float = _flag("How often the thirds of a long positive change places.", 0.0)
    knowledge_distillation: bool = _flag(
        "Add a distillation loss towards the teacher's pos_scores and neg_scores.", False
    )
    keep: str | None = _flag(
        "JSONL of what the model must not lose, in the format of train_data, or the name of a "
        "reranking or retrieval task of mteb: after training, the "
        "mixes of the starting model with the fine-tune are measured on it and on held-out queries "
        "(eval_data, or a fifth of train_data); output_dir gets the chosen mix, "
        "output_dir/fine-tuned the fine-tune, output_dir/report the curve."
    )
    keep_text: str | None = _flag(
        "The same from text without labels: passages, one a line, or JSONL with text or query."
    )
    cache_path: str | None = _flag("Accepted and not needed: files are indexed, not converted.")
    sep_token: str | None = _flag(
        "Goes between query and passage if the tokenizer puts nothing there, and is saved with it. "
        "Default: a line break for a model that gets a fresh head."
    )

    def __post_init__(self) -> None:
        for name in ("train_group_size", "max_example_num_per_dataset"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)} - use 1 or more")
        lengths = ("max_length", "query_max_length", "passage_max_length", "pad_to_multiple_of")
        for name in (*lengths, "micro_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} is {value} - it counts tokens - use 1 or more")
        if self.in_batch_negatives < 0:
            raise ArgumentError(
                f"in_batch_negatives is {self.in_batch_negatives} - it counts passages - use 0 or "
                "more"
            )
        if self.train_group_size + self.in_batch_negatives < 2:
            raise ArgumentError(
                "train_group_size is 1 without in_batch_negatives - a positive alone teaches "
                "nothing - use a group of 2 or more"
            )

    @property
    def pair_length(self) -> int:
        """Return the maximum tokens of a pair, before the model's positions are considered."""
        if self.max_length is not None:
            return self.max_length
        if self.query_max_length is not None and self.passage_max_length is not None:
            return self.query_max_length + self.passage_max_length
        return DEFAULT_MAX_LENGTH

    @property
    def instructions(self) -> Instructions:
        """Return the four instruction flags together."""
        return Instructions(
            query=self.query_instruction_for_rerank,
            query_format=self.query_instruction_format,
            passage=self.passage_instruction_for_rerank,
            passage_format=self.passage_instruction_format,
        )


@dataclass
class RerankerTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """transformers.TrainingArguments, and what a reranker adds to them."""

    overwrite_output_dir: bool = _flag(
        "Replace the model, checkpoints and history that output_dir holds; other files stay.", False
    )
    loss: str = _flag(
        "softmax: cross-entropy of the positive within its group; bce: binary cross-entropy of "
        "each pair.",
        "softmax",
    )
    distillation_temperature: float = _flag("Temperature of knowledge_distillation.", 1.0)
    distillation_weight: float = _flag(
        "Weight of the distillation loss, added to the loss of the labels.", 1.0
    )
    eval_data: list[str] | None = _flag(
        "Held-out queries of the target, in the format of train_data. Measured before "
        "the first step, every eval_steps (every epoch if not given), and at the end. "
        "metric_for_best_model is ndcg@10 if not given."
    )
    retain_data: list[str] | None = _flag(
        "Held-out queries of what the model must not lose; measured with eval_data, "
        "under names with retain_."
    )
    max_eval_queries: int | None = _flag("Use only the first queries of eval_data and retain_data.")
    early_stopping_patience: int | None = _flag(
        "Stop after this many evaluations without a better metric_for_best_model."
    )
    early_stopping_threshold: float = _flag("How much better counts as better.", 0.0)
    warmup_ratio: float = _flag("Share of the steps that the learning rate rises in.", 0.0)
    sub_batch_size: int | None = _flag("Accepted and not needed: see micro_batch_tokens.")

    def __post_init__(self) -> None:
        self._check_values()
        self.notes = settle_precision(self)
        settle_device(self)
        self._settle_evaluation()
        if self.warmup_ratio and not _is_field_of_transformers("warmup_ratio"):
            self.warmup_steps = self.warmup_ratio
        flags: Any = self
        if flags.disable_tqdm is None:
            flags.disable_tqdm = not on_terminal()
        try:
            with warnings.catch_warnings():
                # accelerate tells how many threads it chose; torchrun, if asked, does too.
                warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")
                super().__post_init__()
        except (ValueError, ImportError) as error:
            raise ArgumentError(" ".join(str(error).split())) from None
        check_processes(self)

    @property
    def drawing_seed(self) -> int:
        """Return the seed of shuffling and drawing: ``data_seed``, else ``seed``."""
        return int(self.seed if self.data_seed is None else self.data_seed)

    @property
    def is_sharded(self) -> bool:
        """Whether the processes hold one model together: FSDP, DeepSpeed."""
        launched = (os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
        return bool(self.fsdp or self.deepspeed) or "true" in launched

    def _check_values(self) -> None:
        if self.loss not in LOSSES:
            raise ArgumentError(
                f"loss is {self.loss!r} - there are {', '.join(LOSSES)} - choose one of them"
            )
        if not self.distillation_temperature > 0:
            raise ArgumentError(
                f"distillation_temperature is {self.distillation_temperature} - teacher scores are "
                "divided by it - use more than 0"
            )
        flags: Any = self
        for name, (least, most) in RANGES.items():
            value = getattr(flags, name)
            if value is not None and not least <= value <= most:
                raise ArgumentError(
                    f"{name} is {value} - it must lie between {least} and {most} - choose a "
                    "number in that range"
                )
        if flags.max_steps <= 0 and not flags.num_train_epochs > 0:
            raise ArgumentError(
                f"num_train_epochs is {flags.num_train_epochs} - nothing would be trained - use "
                "more than 0"
            )
        if flags.label_smoothing_factor:
            raise ArgumentError(
                f"label_smoothing_factor is {flags.label_smoothing_factor} - the losses here take "
                "hard labels - leave it out, or soften them by a teacher's scores "
                "(--knowledge_distillation True)"
            )

    def _settle_evaluation(self) -> None:
        """Evaluate what was given, when it was not said when."""
        if not self.eval_data:
            asked = [
                name
                for name in ("retain_data", "load_best_model_at_end", "early_stopping_patience")
                if getattr(self, name)
            ]
            if asked and asked != ["retain_data"]:
                raise ArgumentError(
                    f"{asked[-1]} is given without eval_data - the best model is chosen on the "
                    "target - add --eval_data"
                )
        if not (self.eval_data or self.retain_data):
            return
        flags: Any = self
        if flags.eval_strategy == "no":
            flags.eval_strategy = "steps" if flags.eval_steps else "epoch"
        flags.eval_on_start = True
        if flags.load_best_model_at_end or self.early_stopping_patience is not None:
            flags.metric_for_best_model = flags.metric_for_best_model or DEFAULT_METRIC
        if flags.metric_for_best_model:
            self._check_metric(flags.metric_for_best_model)
        # Only the best checkpoint is needed to come back to it, unless the user plans the saving.
        is_planned = flags.save_strategy != "steps" or flags.save_steps != 500
        if flags.load_best_model_at_end and not is_planned:
            flags.save_strategy = "best"

    def _check_metric(self, name: str) -> None:
        asked = name.removeprefix("eval_")
        measured = "retain_" if asked.startswith("retain_") else ""
        if asked.removeprefix("retain_") not in METRICS or (measured and not self.retain_data):
            raise ArgumentError(
                f"metric_for_best_model is {name!r} - there are {', '.join(METRICS)}, and with "
                "retain_data the same after retain_ - choose one of them"
            )


def _is_field_of_transformers(name: str) -> bool:
    return any(known.name == name for known in fields(TrainingArguments))
