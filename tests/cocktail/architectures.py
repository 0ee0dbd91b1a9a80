"""A tiny model of many architectures of transformers, random and built on the spot."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
       "moe_intermediate_size": 8}  # fmt: skip
GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
DEEPSEEK = {
    **TEXT, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
VISION = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
          "hidden_size": 16, "intermediate_size": 24}  # fmt: skip
AUDIO = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3),
         "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
         "vocab_size": 16}  # fmt: skip
DIM = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 64,
       "max_position_embeddings": 32}  # fmt: skip

# What a class is called without its task, the task, and the sizes.
_CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((name, "ForCausalLM", TEXT) for name in (
        "Llama", "Mistral", "Qwen2", "Phi3", "Olmo", "Olmo2", "StableLm", "Granite", "Cohere",
        "Starcoder2", "Nemotron", "Persimmon", "SmolLM3", "Helium", "Exaone4", "SeedOss",
    )),
    *((name, "ForCausalLM", TEXT | {"head_dim": 8}) for name in (
        "Qwen3", "Gemma", "Gemma2", "Glm", "Glm4", "Ministral",
    )),
    *((name, "ForCausalLM", TEXT | MOE) for name in (
        "Mixtral", "Qwen2Moe", "Olmoe", "PhiMoE" if hasattr(transformers, "PhiMoEConfig") else
        "Phimoe", "GraniteMoe",
    )),
    ("Qwen3Moe", "ForCausalLM", TEXT | MOE | {"head_dim": 8}),
    ("GptOss", "ForCausalLM", TEXT | MOE | {"head_dim": 8}),
    ("DeepseekV2", "ForCausalLM", DEEPSEEK),
    ("DeepseekV3", "ForCausalLM", DEEPSEEK),
    ("Phi", "ForCausalLM", TEXT),
    ("GPT2", "LMHeadModel", GPT), ("GPTJ", "ForCausalLM", GPT | {"rotary_dim": 4}),
    ("CodeGen", "ForCausalLM", GPT | {"rotary_dim": 4, "n_head": 4}),
    ("GPTBigCode", "ForCausalLM", GPT), ("OpenAIGPT", "LMHeadModel", GPT),
    ("GPTNeoX", "ForCausalLM", ENCODER),
    ("GPTNeo", "ForCausalLM", {
        "vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32}),
    ("Bloom", "ForCausalLM", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    ("Falcon", "ForCausalLM", ENCODER), ("Mpt", "ForCausalLM", {
        "vocab_size": 64, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),
    ("OPT", "ForCausalLM", {
        "vocab_size": 64, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 32}),
    ("XGLM", "ForCausalLM", {
        "vocab_size": 64, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2}),
    ("Mamba", "ForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
    ("Mamba2", "ForCausalLM", {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4,
        "head_dim": 8, "n_groups": 1, "state_size": 8}),
    ("FalconMamba", "ForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
    ("Rwkv", "ForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2,
                             "attention_hidden_size": 16, "intermediate_size": 24}),
    *((name, "ForMaskedLM", ENCODER) for name in (
        "Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "MPNet", "Ernie", "ConvBert",
        "NomicBert", "RoFormer", "MegatronBert",
    ) if hasattr(transformers, f"{name}ForMaskedLM")),
    ("Albert", "ForMaskedLM", ENCODER | {"embedding_size": 16}),
    ("DebertaV2", "ForMaskedLM", ENCODER), ("Deberta", "ForMaskedLM", ENCODER),
    ("DistilBert", "ForMaskedLM", DIM),
    ("ModernBert", "ForMaskedLM", ENCODER | {"cls_token_id": 1, "sep_token_id": 2}),
    *((name, "ForSequenceClassification", sizes | {"num_labels": 1}) for name, sizes in (
        ("Bert", ENCODER), ("Roberta", ENCODER), ("XLMRoberta", ENCODER), ("Electra", ENCODER),
        ("DebertaV2", ENCODER), ("DistilBert", DIM), ("Llama", TEXT), ("Qwen2", TEXT),
        ("ModernBert", ENCODER | {"cls_token_id": 1, "sep_token_id": 2}), ("Mistral", TEXT),
        ("Gemma", TEXT | {"head_dim": 8}), ("GPT2", GPT), ("MPNet", ENCODER),
    )),
    ("Bert", "ForTokenClassification", ENCODER | {"num_labels": 3}),
    ("Roberta", "ForQuestionAnswering", ENCODER),
    ("T5", "ForConditionalGeneration", T5), ("MT5", "ForConditionalGeneration", T5),
    ("UMT5", "ForConditionalGeneration", T5), ("LongT5", "ForConditionalGeneration", T5),
    ("SwitchTransformers", "ForConditionalGeneration", T5 | {
        "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}),
    *((name, "ForConditionalGeneration", SEQ2SEQ) for name in (
        "Bart", "MBart", "Pegasus", "Blenderbot", "BlenderbotSmall", "M2M100", "Plbart" if
        hasattr(transformers, "PlbartConfig") else "PLBart",
    )),
    ("Marian", "MTModel", SEQ2SEQ),
    ("Whisper", "ForConditionalGeneration", SEQ2SEQ | {
        "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}),
    ("ViT", "ForImageClassification", VISION),
    ("Wav2Vec2", "ForCTC", AUDIO), ("Hubert", "ForCTC", AUDIO),
)  # fmt: skip


def _vision_language() -> dict[str, tuple[type, Any]]:
    t = transformers
    clip = t.CLIPVisionConfig(**VISION, projection_dim=16)
    llama = t.LlamaConfig(**TEXT)
    return {
        "LlavaForConditionalGeneration": (
            t.LlavaForConditionalGeneration,
            t.LlavaConfig(vision_config=clip, text_config=llama, image_token_index=60),
        ),
        "VipLlavaForConditionalGeneration": (
            t.VipLlavaForConditionalGeneration,
            t.VipLlavaConfig(
                vision_config=clip, text_config=llama, image_token_index=60,
                vision_feature_layers=[-1, -1],
            ),
        ),
    }  # fmt: skip


def names() -> list[str]:
    """What the architectures are called, one for each class and task."""
    plain = [f"{name}{task}" for name, task, _ in _CASES]
    known = [name for name in dict.fromkeys(plain) if hasattr(transformers, name)]
    return [*known, *_vision_language()]


def build(name: str) -> PreTrainedModel:
    """A tiny model of random weights; the same ones every time."""
    special = _vision_language()
    if name in special:
        made, config = special[name]
        return made(config).eval()
    base, sizes = next((b, sizes) for b, task, sizes in _CASES if f"{b}{task}" == name)
    config = getattr(transformers, f"{base}Config")(**sizes)
    model: PreTrainedModel = getattr(transformers, name)(config)
    return model.eval()


def bare_class(model: PreTrainedModel) -> type[PreTrainedModel] | None:
    """The class of the transformer alone, where a model keeps it under a prefix."""
    base = getattr(model, model.base_model_prefix, None)
    return type(base) if isinstance(base, PreTrainedModel) else None
