"""Writes configs.json: what transformers makes of config.json files.

Run with transformers 5.17.0 and torch: python configs.py > configs.json
Each case holds a config.json, and either what AutoConfig and the model's rotary embedding
have after reading it, or "refused": transformers raises, or the forward pass cannot run.
Where Sconce refuses what transformers ignores, the case says why ("refused_here").
"""

import json
import logging
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

assert transformers.__version__ == "5.17.0", transformers.__version__
logging.disable(logging.WARNING)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
ABSENT = object()
ROTARY = {"llama": LlamaRotaryEmbedding, "mistral": MistralRotaryEmbedding}
ARCHITECTURE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def yarn(**fields):
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024} | fields


def llama3(**fields):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    return {field: value for field, value in (scaling | fields).items() if value is not ABSENT}


LINEAR = {"rope_type": "linear", "factor": 2.0}

# Fields over the base, of both families.
BOTH = {
    "plain": {},
    "no_sizes_given": {
        field: ABSENT
        for field in LLAMA
        if field not in ("architectures", "model_type", "num_attention_heads")
    },
    "architectures_absent": {"architectures": ABSENT},
    "architectures_null": {"architectures": None},
    "model_type_of_another": {"model_type": "mixtral"},
    "vocab_size_null": {"vocab_size": None},
    "vocab_size_float": {"vocab_size": 320.0},
    "vocab_size_bool": {"vocab_size": True},
    "vocab_size_string": {"vocab_size": "320"},
    "layers_null": {"num_hidden_layers": None},
    "max_position_embeddings_null": {"max_position_embeddings": None},
    "eps": {"rms_norm_eps": 1e-5},
    "eps_null": {"rms_norm_eps": None},
    "eps_string": {"rms_norm_eps": "1e-5"},
    "kv_heads": {"num_key_value_heads": 2},
    "kv_heads_null": {"num_key_value_heads": None},
    "head_dim": {"head_dim": 64},
    "head_dim_null": {"head_dim": None},
    "head_dim_string": {"head_dim": "64"},
    "hidden_act_swish": {"hidden_act": "swish"},
    "hidden_act_null": {"hidden_act": None},
    "tied": {"tie_word_embeddings": True},
    "tied_null": {"tie_word_embeddings": None},
    "tied_number": {"tie_word_embeddings": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "window": {"sliding_window": 128},
    "window_null": {"sliding_window": None},
    "window_unused": {"sliding_window": 128, "use_sliding_window": False},
    "pretraining_tp": {"pretraining_tp": 2},
    "older_dtype": {"torch_dtype": "bfloat16", "use_cache": False},
    "theta": {"rope_theta": 500000.0},
    "theta_whole": {"rope_theta": 500000},
    "theta_null": {"rope_theta": None},
    "theta_string": {"rope_theta": "500000"},
    "theta_object": {"rope_theta": {"default": 500000}},
    "theta_within": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "theta_within_null": {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "theta_twice": {"rope_theta": 7e5, "rope_parameters": {"rope_theta": 500000.0}},
    "theta_within_and_null": {"rope_theta": None, "rope_parameters": {"rope_theta": 500000.0}},
    "theta_within_the_older": {"rope_scaling": LINEAR | {"rope_theta": 500000.0}},
    "scaling_null": {"rope_scaling": None, "rope_theta": 500000.0},
    "scaling_empty": {"rope_scaling": {}, "rope_theta": 500000.0},
    "scaling_empty_and_parameters": {"rope_scaling": {}, "rope_parameters": LINEAR},
    "scaling_null_and_parameters": {"rope_scaling": None, "rope_parameters": LINEAR},
    "scaling_string": {"rope_scaling": "linear"},
    "scaling_list": {"rope_scaling": [2.0]},
    "parameters_string": {"rope_parameters": "linear"},
    "scaling_beside_parameters": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500000.0},
    },
    "scaling_beside_parameters_and_theta": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": yarn(rope_theta=500000.0),
        "rope_theta": 7e5,
    },
    "type_default": {"rope_scaling": {"rope_type": "default"}},
    "type_default_with_a_factor": {"rope_scaling": {"rope_type": "default", "factor": 2.0}},
    "type_absent_with_a_factor": {"rope_scaling": {"factor": 2.0}},
    "type_null": {"rope_scaling": {"rope_type": None, "factor": 2.0}},
    "type_number": {"rope_scaling": {"rope_type": 1, "factor": 2.0}},
    "type_unknown": {"rope_scaling": {"type": "su", "factor": 2.0}},
    "types_at_odds": {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
    "linear": {"rope_scaling": LINEAR},
    "linear_older": {"rope_scaling": {"type": "linear", "factor": 4}},
    "linear_new": {"rope_parameters": LINEAR | {"rope_theta": 5e5}},
    "linear_without_a_factor": {"rope_scaling": {"type": "linear"}},
    "linear_factor_null": {"rope_scaling": {"type": "linear", "factor": None}},
    "linear_factor_string": {"rope_scaling": {"type": "linear", "factor": "2"}},
    "linear_original": {"rope_scaling": LINEAR, "original_max_position_embeddings": 512},
    "partial_one": {"partial_rotary_factor": 1.0},
    "partial_null": {"partial_rotary_factor": None},
    "partial_linear": {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR},
    "partial_overruled": {
        "partial_rotary_factor": 0.5,
        "rope_parameters": LINEAR | {"partial_rotary_factor": 1.0},
    },
    "llama3": {"rope_scaling": llama3()},
    "llama3_new": {"rope_parameters": llama3(rope_theta=500000.0), "rope_theta": 10000.0},
    "llama3_without_original": {
        "rope_scaling": llama3(original_max_position_embeddings=ABSENT),
    },
    "llama3_original_null": {"rope_scaling": llama3(original_max_position_embeddings=None)},
    "llama3_original_at_the_top": {
        "rope_scaling": llama3(original_max_position_embeddings=ABSENT),
        "original_max_position_embeddings": 512,
    },
    "llama3_originals_at_odds": {
        "rope_scaling": llama3(),
        "original_max_position_embeddings": 512,
    },
    "llama3_original_null_at_the_top": {
        "rope_scaling": llama3(),
        "original_max_position_embeddings": None,
    },
    "llama3_without_low": {"rope_scaling": llama3(low_freq_factor=ABSENT)},
    "llama3_without_high": {"rope_scaling": llama3(high_freq_factor=ABSENT)},
    "llama3_without_factor": {"rope_scaling": llama3(factor=ABSENT)},
    "llama3_low_null": {"rope_scaling": llama3(low_freq_factor=None)},
    "yarn": {"rope_scaling": yarn()},
    "yarn_older": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn_new": {"rope_parameters": yarn(rope_theta=500000.0)},
    "yarn_without_a_factor": {"rope_scaling": {"rope_type": "yarn"}},
    "yarn_factor_null": {"rope_scaling": yarn(factor=None)},
    "yarn_factor_one": {"rope_scaling": yarn(factor=1.0)},
    "yarn_factor_of_another_ratio": {"rope_scaling": yarn(factor=16.0)},
    "yarn_original_null": {"rope_scaling": yarn(original_max_position_embeddings=None)},
    "yarn_originals_at_odds": {
        "rope_scaling": yarn(),
        "original_max_position_embeddings": 512,
    },
    "yarn_original_and_null_factor": {
        "rope_scaling": yarn(factor=None),
        "original_max_position_embeddings": 512,
    },
    "yarn_attention_factor": {"rope_scaling": yarn(attention_factor=0.7)},
    "yarn_attention_factor_null": {"rope_scaling": yarn(attention_factor=None)},
    "yarn_attention_factor_over_mscale": {
        "rope_scaling": yarn(attention_factor=0.7, mscale=2.0, mscale_all_dim=0.5),
    },
    "yarn_mscale": {"rope_scaling": yarn(mscale=2.0, mscale_all_dim=0.5)},
    "yarn_mscale_alone": {"rope_scaling": yarn(mscale=2.0)},
    "yarn_mscale_all_dim_alone": {"rope_scaling": yarn(mscale_all_dim=2.0)},
    "yarn_mscale_zero": {"rope_scaling": yarn(mscale=1.0, mscale_all_dim=0)},
    "yarn_mscale_null": {"rope_scaling": yarn(mscale=None, mscale_all_dim=1.0)},
    "yarn_betas": {"rope_scaling": yarn(beta_fast=24, beta_slow=2)},
    "yarn_betas_null": {"rope_scaling": yarn(beta_fast=None, beta_slow=None)},
    "yarn_betas_zero": {"rope_scaling": yarn(beta_fast=0, beta_slow=0)},
    "yarn_truncate": {"rope_scaling": yarn(truncate=True)},
    "yarn_truncate_not": {"rope_scaling": yarn(truncate=False)},
    "yarn_truncate_null": {"rope_scaling": yarn(truncate=None)},
    "layers_of_their_own": {"per_layer_config": {"0": {"num_attention_heads": 4}}},
    "quantization_null": {"quantization_config": None},
}
LLAMA_ONLY = {
    "layer_types_are_not_read": {"layer_types": ["full_attention", "sliding_attention"]},
}
REFUSED_HERE = {
    "partial": (
        {"partial_rotary_factor": 0.5},
        "RoPE without scaling ignores the field; other engines rotate a part of each head",
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not implemented"),
    "longrope": (
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
                "factor": 2.0,
            }
        },
        "not implemented",
    ),
    "ministral": (
        {"model_type": "ministral", "architectures": ["MinistralForCausalLM"]},
        "not implemented",
    ),
    "ministral_as_mistral": (
        MISTRAL | {"layer_types": ["full_attention", "sliding_attention"]},
        "transformers takes it for a Ministral, which is not implemented",
    ),
    "classes_at_odds": (
        {"architectures": ["MistralForCausalLM"]},
        "transformers goes by model_type, other engines by architectures",
    ),
    "another_class": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "transformers would load it as a LlamaForCausalLM with a random lm_head",
    ),
}


def effective(fields):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(fields))
        config = AutoConfig.from_pretrained(folder)
    kind = config.model_type
    rotary = ROTARY[kind](config)
    frequencies = rotary.inv_freq
    assert torch.isfinite(frequencies).all()
    # What a forward pass multiplies heads with.
    torch.zeros(config.head_dim) * torch.cat((frequencies, frequencies))
    return {
        "architecture": ARCHITECTURE[kind],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        # Mistral's modelling code has bias=False, and Llama's no sliding window.
        "attention_bias": kind == "llama" and config.attention_bias,
        "mlp_bias": kind == "llama" and config.mlp_bias,
        "sliding_window": config.sliding_window if kind == "mistral" else None,
        "inverse_frequencies": [float(f"{frequency:.9g}") for frequency in frequencies],
        "attention_factor": rotary.attention_scaling,
    }


def case(name, base, fields):
    config = {k: v for k, v in (base | fields).items() if v is not ABSENT}
    told = {"name": name, "config": config}
    try:
        return told | {"effective": effective(config)}
    except Exception as error:
        return told | {"refused": type(error).__name__}


out = []
for family, base, cases in [
    ("llama", LLAMA, BOTH | LLAMA_ONLY),
    ("mistral", MISTRAL, BOTH),
]:
    out += [case(f"{family}_{name}", base, fields) for name, fields in cases.items()]
for name, (fields, why) in REFUSED_HERE.items():
    out.append({"name": name, "config": LLAMA | fields, "refused_here": why})
print("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]")
