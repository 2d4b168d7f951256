"""Makes a Llama of random bf16 weights, in Hugging Face's form, without any package.

Weights are normal-like numbers of the scale that keeps activations near 1, taken from a
block of a million at another offset for each row: never zeros, which run faster than
real weights do.
"""

import argparse
import json
import random
import struct
from array import array
from pathlib import Path

BLOCK = 1 << 20
# Bytes of a shard, about.
SHARD = 4 << 30
# Of tokens that are not to be generated the logits are smaller by this power of two.
SILENCE = 8


def bf16(number):
    """The upper half of a float's bits, rounded."""
    bits = struct.unpack("<I", struct.pack("<f", number))[0]
    return (bits + 0x8000) >> 16 & 0xFFFF


class Numbers:
    """Random bf16 numbers of standard deviation 1, scaled by powers of two."""

    def __init__(self, seed):
        generator = random.Random(seed)
        self.generator = generator
        self.blocks = {}

    def block(self, exponent):
        if exponent not in self.blocks:
            generator = random.Random(exponent)
            scale = 2.0**exponent
            # The sum of three uniform numbers is near enough to a normal one.
            uniform = generator.random
            numbers = (bf16((uniform() + uniform() + uniform() - 1.5) * 2 * scale) for _ in range(BLOCK))
            self.blocks[exponent] = array("H", numbers).tobytes() * 2
        return self.blocks[exponent]

    def write(self, file, count, exponent):
        block = self.block(exponent)
        while count > 0:
            piece = min(count, BLOCK)
            start = self.generator.randrange(BLOCK)
            file.write(block[2 * start : 2 * (start + piece)])
            count -= piece


def tensors(a):
    """Names, shapes and the binary logarithm of their numbers' scale."""
    head_dim = a.hidden // a.heads
    kv = a.kv_heads * head_dim

    def scale(fan_in):
        return -round(0.5 * (fan_in.bit_length() - 1))

    yield "model.embed_tokens.weight", (a.vocab, a.hidden), 0
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (a.hidden,), None
        yield prefix + "self_attn.q_proj.weight", (a.hidden, a.hidden), scale(a.hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, a.hidden), scale(a.hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, a.hidden), scale(a.hidden)
        yield prefix + "self_attn.o_proj.weight", (a.hidden, a.hidden), scale(a.hidden)
        yield prefix + "post_attention_layernorm.weight", (a.hidden,), None
        yield prefix + "mlp.gate_proj.weight", (a.intermediate, a.hidden), scale(a.hidden)
        yield prefix + "mlp.up_proj.weight", (a.intermediate, a.hidden), scale(a.hidden)
        yield prefix + "mlp.down_proj.weight", (a.hidden, a.intermediate), scale(a.intermediate)
    yield "model.norm.weight", (a.hidden,), None
    # So that one token is clearly ahead of the others.
    yield "lm_head.weight", (a.vocab, a.hidden), scale(a.hidden) + 2


def elements(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_shard(path, shard, numbers, spoken):
    header, at = {}, 0
    for name, shape, _ in shard:
        end = at + 2 * elements(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, exponent in shard:
            if exponent is None:
                file.write(struct.pack("<H", bf16(1.0)) * elements(shape))
            elif name == "lm_head.weight" and spoken:
                for token in range(shape[0]):
                    numbers.write(file, shape[1], exponent if token in spoken else exponent - SILENCE)
            else:
                numbers.write(file, elements(shape), exponent)


def whole_words(path):
    """Tokens that are text by themselves: each arrives at a client when it is generated."""
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    return {token for text, token in vocabulary.items() if text.lstrip("\u0120").isascii()}


def write_model(a):
    a.dir.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": a.vocab,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.hidden // a.heads,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (a.dir / "config.json").write_text(json.dumps(config, indent=1))
    shards, size = [[]], 0
    for tensor in tensors(a):
        if size > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += 2 * elements(tensor[1])
    numbers, weight_map = Numbers(a.seed), {}
    spoken = whole_words(a.words) if a.words else None
    for index, shard in enumerate(shards, 1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_shard(a.dir / name, shard, numbers, spoken)
        weight_map.update({tensor[0]: name for tensor in shard})
    total = sum(2 * elements(shape) for _, shape, _ in tensors(a))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (a.dir / "model.safetensors.index.json").write_text(json.dumps(index))


def write_prompts(a):
    generator = random.Random(a.seed + 1)
    lengths = [1 + generator.randrange(100) for _ in range(a.num_prompts)]
    prompts = [[generator.randrange(a.vocab) for _ in range(length)] for length in lengths]
    a.prompts.write_text(json.dumps(prompts))


def write_tokenizer(directory):
    """The bytes, as the smallest tokenizer that can be served."""
    # GPT-2's letters for bytes.
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, more = {byte: chr(byte) for byte in letters}, 256
    for byte in range(256):
        if byte not in names:
            names[byte] = chr(more)
            more += 1
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {names[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text("{}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path)
    for name in ["layers", "hidden", "intermediate", "heads", "kv-heads", "vocab"]:
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=Path, help="write prompts too, as JSON")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--words", type=Path, help="generate only whole words of this tokenizer.json")
    parser.add_argument("--tokenizer", type=Path, help="write a tokenizer of bytes into this folder")
    a = parser.parse_args()
    if a.dir:
        write_model(a)
    if a.prompts:
        write_prompts(a)
    if a.tokenizer:
        write_tokenizer(a.tokenizer)


if __name__ == "__main__":
    main()
