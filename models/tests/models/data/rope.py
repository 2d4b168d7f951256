"""Writes rope.json: what transformers makes of RoPE's scalings.

Run with transformers 5 and torch: python rope.py > rope.json
Each case holds a config.json's fields, and the inverse frequencies and the
factor on cosines and sines that ROPE_INIT_FUNCTIONS gives for them (f32).
"""

import json

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = {
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
        }
    },
    "yarn_every_option": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 2048,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "mscale": 0.8,
            "mscale_all_dim": 1.2,
            "truncate": False,
        }
    },
}

HEAD_DIM = 64
out = []
for name, fields in CASES.items():
    config = LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
        **fields,
    )
    rope_type = fields["rope_parameters"]["rope_type"]
    if rope_type == "default":
        theta = fields["rope_parameters"]["rope_theta"]
        exponents = torch.arange(0, HEAD_DIM, 2, dtype=torch.float) / HEAD_DIM
        frequencies, factor = 1.0 / (theta**exponents), 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, "cpu")
    out.append(
        {
            "name": name,
            "config": fields,
            "inverse_frequencies": frequencies.tolist(),
            "attention_factor": factor,
        }
    )
print(json.dumps(out, indent=1))
