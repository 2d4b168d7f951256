"""The engines: how each is installed, started and asked.

Every one gets the same weights, the same two facts about the machine (its
cores, and that nothing else runs), and room for every sequence. Flags are those
that made it fastest when tried; what a flag costs it is not ours to choose.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import install

# Each model's ends of an answer: servers that do not know `ignore_eos` never sample them.
ENDS = {install.SMOLLM2: ["2"], install.GEMMA: ["1", "106"]}
CORES = len(os.sched_getaffinity(0))
# Sequences at once: 32 streams, and prompts that arrive meanwhile.
SEQUENCES = 40


@dataclass
class Engine:
    """An engine under one dtype."""

    key: str
    name: str
    version: str
    dtype: str
    # From a port to the command that serves there; runs what must be installed.
    command: Callable[[int], list]
    # The name requests call the model by.
    model: Callable[[], object]
    env: dict = field(default_factory=dict)
    # As `sconce bench --backend` has it.
    backend: str = "openai"
    # Fields of each request beside the usual ones; null takes one away.
    extra_body: dict = field(default_factory=dict)
    # What answers 200 once requests can be served.
    ready: str = "/health"
    # Whether it is a process that reads loads and writes reports, not a server.
    in_process: bool = False
    # Whether it is among those whose bf16 instructions can be masked.
    maskable: bool = False
    # Whether it can be made to give every token asked for.
    exact: bool = True
    # The cells it takes part in; None is all of them.
    cells: tuple | None = None

    @property
    def title(self):
        return f"{self.name} {self.version} {self.dtype}"

    @property
    def label(self):
        """For a plot, which names the versions nowhere."""
        return f"{self.name} {self.dtype}"


class Peers:
    """What is installed once and shared by several engines."""

    def __init__(self, name, masked, log):
        self.name = name
        self.masked = masked
        self.log = log
        self._done = {}

    def get(self, step, *arguments):
        key = (step.__name__, *arguments)
        if key not in self._done:
            self._done[key] = step(*arguments, self.log)
        return self._done[key]

    def binary(self):
        return self.get(install.sconce)

    def model(self):
        return self.get(install.model, self.binary(), self.name)

    def sconce(self, *flags):
        def command(port):
            base = [self.binary(), "serve", self.model(), "--port", port]
            mask = ["--cpu-isa", "avx512-vnni"] if self.masked else []
            return [*base, "--served-model-name", self.name, *flags, *mask]

        return command

    def llama(self, kind, slots=32, slot_tokens=1024):
        def command(port):
            server, quantize = self.get(install.llama_cpp, self.masked)
            weights = self.get(install.gguf, quantize, self.name, kind)
            threads = ["-t", CORES, "-tb", CORES]
            room = ["-np", slots, "-c", slots * slot_tokens, "-cb", "-fa", "on"]
            return [server, "-m", weights, "--host", "127.0.0.1", "--port", port, *threads, *room]

        return command

    def openvino(self, _):
        python = self.get(install.openvino)
        _, quantize = self.get(install.llama_cpp, self.masked)
        script = Path(__file__).resolve().parent / "openvino_streams.py"
        weights = self.get(install.gguf, quantize, self.name, "Q8_0")
        precision = ["--without-bf16"] if self.masked else []
        return [python, script, weights, "--max-num-seqs", SEQUENCES, *precision]

    def openvino_env(self):
        # Masks bf16 in oneDNN only; OpenVINO itself would go on to choose it.
        return {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"} if self.masked else {}

    def vllm(self, port):
        environment = self.get(install.torch)
        # Preloaded as its documentation advises.
        self.vllm_env["LD_PRELOAD"] = str(environment / "lib/libiomp5.so")
        command = [environment / "bin/vllm", "serve", self.model(), "--port", port]
        room = ["--max-model-len", 8192, "--max-num-seqs", SEQUENCES, "--dtype", "bfloat16"]
        return [*command, "--host", "127.0.0.1", "--served-model-name", self.name, *room]

    vllm_env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # By itself it leaves a core to its HTTP server, which here is half of them.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }

    def mistralrs(self, port):
        binary = self.get(install.mistralrs)
        command = [binary, "serve", "-m", self.model(), "--cpu", "--dtype", "f32"]
        # Its prefix cache cuts answers short when many run at once.
        room = ["--max-seqs", SEQUENCES, "--prefix-cache-n", 0]
        return [*command, *room, "--host", "127.0.0.1", "--port", port]

    def transformers(self, port):
        environment = self.get(install.torch)
        command = [environment / "bin/transformers", "serve", self.model(), "--port", port]
        how = ["--device", "cpu", "--dtype", "bfloat16", "--continuous-batching"]
        # Its default takes nine tenths of the memory for the KV cache.
        return [*command, *how, "--attn-implementation", "sdpa", "--cb-max-memory-percent", 0.1]


# Those that serve Gemma 3 out of these weights.
WITH_GEMMA = ("sconce", "sconce-int8", "llama.cpp", "llama.cpp-q8")


def all_engines(name, masked, log):
    """Every engine that serves the model, Sconce's own first; where bf16 instructions are
    masked, those in which they can be."""
    found = unmasked_engines(Peers(name, masked, log))
    found = [engine for engine in found if engine.maskable or not masked]
    return [engine for engine in found if name == install.SMOLLM2 or engine.key in WITH_GEMMA]


def unmasked_engines(peers):
    """Every engine, as the peers are installed."""
    bias = {end: -100 for end in ENDS[peers.name]}
    no_end = {"ignore_eos": True, "logit_bias": bias}
    packaged = f"(llama-cpp-python {install.LLAMA_CPP_PYTHON})"
    named = {"model": lambda: peers.name}
    llama = {**named, "name": "llama.cpp", "version": packaged, "extra_body": no_end, "maskable": True}
    own = {**named, "name": "Sconce", "version": version(), "ready": "/ready", "maskable": True}
    plain = ("streams-1", "streams-8", "streams-32", "ttft-500")
    return [
        Engine(key="sconce", dtype="bf16", command=peers.sconce(), **own),
        Engine(key="sconce-int8", dtype="int8", command=peers.sconce("--quantization", "int8"), **own),
        Engine(key="sconce-f32", dtype="f32", command=peers.sconce("--dtype", "float32"), cells=plain, **own),
        Engine(key="llama.cpp", dtype="bf16", command=peers.llama("BF16"), cells=plain, **llama),
        # Its slots share out the context evenly, and longer prompts need larger ones.
        Engine(
            key="llama.cpp-long",
            dtype="bf16, larger slots",
            command=peers.llama("BF16", SEQUENCES, 2304),
            cells=("mixed-32",),
            **llama,
        ),
        Engine(key="llama.cpp-q8", dtype="Q8_0", command=peers.llama("Q8_0"), cells=plain, **llama),
        Engine(
            key="openvino",
            name="OpenVINO GenAI",
            version=install.OPENVINO,
            dtype="Q8_0, in process",
            command=peers.openvino,
            **named,
            env=peers.openvino_env(),
            in_process=True,
            maskable=True,
            cells=plain,
        ),
        Engine(
            key="vllm",
            name="vLLM CPU",
            version=install.VLLM,
            dtype="bf16",
            command=peers.vllm,
            **named,
            env=Peers.vllm_env,
            extra_body={"ignore_eos": True},
        ),
        Engine(
            key="mistralrs",
            name="mistral.rs",
            version=install.MISTRALRS,
            dtype="f32",
            command=peers.mistralrs,
            model=lambda: "default",
            extra_body={"ignore_eos": None, "stream_options": None, "logit_bias": bias},
            cells=plain,
        ),
        Engine(
            key="transformers",
            name="transformers serve",
            version=transformers_version(),
            dtype="bf16",
            command=peers.transformers,
            backend="openai-chat",
            # It knows the model by its path alone.
            model=peers.model,
            extra_body={"ignore_eos": None, "stream_options": None},
            exact=False,
            cells=plain,
        ),
    ]


def version():
    for line in (install.ROOT / "Cargo.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise install.Failed("Cargo.toml names no version")


def transformers_version():
    for line in (install.REQUIREMENTS / "torch.txt").read_text().splitlines():
        if line.startswith("transformers=="):
            return line.removeprefix("transformers==")
    raise install.Failed("requirements/torch.txt pins no transformers")
