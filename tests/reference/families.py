"""Makes a small random checkpoint of each model family, and what transformers answers.

    python tests/reference/families.py [NAME ...]

Each goes to families/NAME beside this file: the checkpoint as `save_pretrained` writes it
in bfloat16 (the weights are bfloat16 numbers, so that float32 holds the same), and golden
data in float32. README.md says what each output is.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

HERE = pathlib.Path(__file__).parent / "families"
NEW_TOKENS = 64
# Of each length the candidate is taken whose closest call is the least close.
PROMPT_LENS = [3, 20, 45, 80]
CANDIDATES = 96
# So that float16 decides alike: its logits are off by some hundredths at most.
LEAST_MARGIN = 0.05
# Answers that go round in circles of a few tokens would test little.
DISTINCT = 12

# What the families have in common: heads that the CUDA kernels take, grouped; little else.
SIZES = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)

FAMILIES = {
    "qwen2": lambda: Qwen2Config(
        **SIZES | dict(hidden_size=128, intermediate_size=48, tie_word_embeddings=True)
    ),
    # The first layer sees all of the context, the others a window that two prompts exceed.
    "qwen2-window": lambda: Qwen2Config(
        **SIZES
        | dict(
            hidden_size=128,
            intermediate_size=48,
            use_sliding_window=True,
            sliding_window=24,
            max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        )
    ),
    # Heads that are not cut from the hidden size.
    "qwen3": lambda: Qwen3Config(
        **SIZES | dict(num_hidden_layers=3, head_dim=64, attention_bias=True)
    ),
    # The first layer has no experts, the second and third choose three of seven.
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SIZES
        | dict(
            num_hidden_layers=3,
            intermediate_size=64,
            head_dim=64,
            num_experts=7,
            num_experts_per_tok=3,
            moe_intermediate_size=16,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        )
    ),
    # Two layers in three have a window and frequencies of their own.
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES
        | dict(
            num_hidden_layers=3,
            head_dim=256,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=64,
            final_logit_softcapping=15.0,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        )
    ),
}


def random_weights(model, rng):
    """Fills in numbers of such sizes that every weight tells: what is normed has weights
    around those of a fresh model, scores and gates are of order 1, logits of order 4."""
    tied = model.config.tie_word_embeddings
    # Where embeddings are scaled they would outweigh the layers; the last norm makes it up.
    scaled = hasattr(model.model.embed_tokens, "embed_scale")
    for name, parameter in model.named_parameters():
        numbers = torch.from_numpy(rng.standard_normal(parameter.shape, dtype=np.float32))
        if "norm" in name:
            numbers = parameter.data + 0.3 * numbers
            numbers += 15 if scaled and name == "model.norm.weight" else 0
        elif name.endswith("bias"):
            numbers *= 0.5
        elif "embed_tokens" in name:
            numbers *= (0.25 if scaled else 4) / parameter.shape[-1] ** 0.5 if tied else 1
        else:
            numbers *= (4 if "lm_head" in name else 1.5) / parameter.shape[-1] ** 0.5
        parameter.data.copy_(numbers.bfloat16().float())


@torch.no_grad()
def greedy(model, prompts):
    """The tokens after prompts of one length, and by how much each is ahead of the next
    best; nothing is kept from step to step."""
    context, margins = prompts, []
    for _ in range(NEW_TOKENS):
        logits = model(context, use_cache=False).logits[:, -1]
        best = logits.topk(2, dim=-1)
        margins.append(best.values[:, 0] - best.values[:, 1])
        context = torch.cat([context, best.indices[:, :1]], dim=-1)
    return context[:, prompts.shape[1] :], torch.stack(margins, dim=-1)


@torch.no_grad()
def golden(model, rng):
    cases, arrays = [], {}
    for length in PROMPT_LENS:
        prompts = torch.from_numpy(rng.integers(model.config.vocab_size, size=(CANDIDATES, length)))
        tokens, margins = greedy(model, prompts)
        least = margins.min(dim=-1).values
        varied = torch.tensor([len(set(row)) >= DISTINCT for row in tokens.tolist()])
        chosen = torch.where(varied, least, -1).argmax().item()
        assert varied[chosen] and least[chosen] >= LEAST_MARGIN, f"{length}: no good candidate"
        cases.append(
            {
                "prompt": prompts[chosen].tolist(),
                "tokens": tokens[chosen].tolist(),
                "margins": [round(margin, 4) for margin in margins[chosen].tolist()],
            }
        )
        arrays[f"{len(cases) - 1}"] = model(prompts[chosen : chosen + 1]).logits[0].numpy()
        distinct = len(set(cases[-1]["tokens"]))
        print(f"  {length}: {distinct} different tokens, least margin {least[chosen]:.3f}")
    return cases, arrays


def make(name):
    rng = np.random.default_rng(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager")
    model = model.float().eval()
    random_weights(model, rng)
    cases, arrays = golden(model, rng)
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    model.bfloat16().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    text = json.dumps(cases).replace("}, {", "},\n{")
    (out / "golden.json").write_text(text + "\n")
    save_file(arrays, out / "logits.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or FAMILIES:
        print(name, flush=True)
        make(name)


if __name__ == "__main__":
    main()
