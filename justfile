# Everyday commands; the README's two commands need none of these.

default:
    @just --list

# Format and lints.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# One crate's tests, or all.
test crate="":
    cargo nextest run {{ if crate == "" { "--workspace" } else { "-p " + crate } }}

# The scheduler's simulation with more steps: just sim 7 20000000
sim seed="1" steps="10000000":
    SCONCE_SIM_SEED={{ seed }} SCONCE_SIM_STEPS={{ steps }} cargo test -p sconce-scheduler --test scheduler -- simulation:: --nocapture

# Single-stream and loaded throughput of the default model on this machine.
bench *args:
    cargo bench --bench throughput -- {{ args }}

# Sconce beside llama.cpp, vLLM, mistral.rs and transformers: just peers --only sconce vllm
peers *args:
    benches/peers/run {{ args }}

# What Sconce itself costs a token, by stage.
overhead:
    cargo bench --bench overhead

# The host's share of a decode step, over a device that takes no time.
host:
    cargo bench --bench host

# What a tenant notices of another's flood and cache, over HTTP.
tenants *args:
    benches/tenants/run {{ args }}

# A step of the scheduler with up to 1,024 sequences and 4,000 tenants.
bench-scheduler:
    cargo bench -p sconce-scheduler --bench scheduler

# The load client beside aiperf.
agreement:
    benches/serve/agreement

# aiperf, guidellm and `vllm bench serve` against the server: no errors, and its counts of tokens.
harnesses *args:
    benches/harnesses/run {{ args }}

# The CPU kernels beside the machine's measured ceilings.
bench-kernels:
    cargo bench -p sconce-kernels

# Instructions and heap calls of the hot paths beside the stored ones, which --update replaces.
instructions *args:
    cargo run -p sconce-instructions --profile instructions --locked -- {{ args }}

# The CPU kernels' tests on 64-bit Arm, emulated; needs rustup's target, a cross linker and qemu.
aarch64:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu" \
    cargo test -p sconce-kernels --target aarch64-unknown-linux-gnu

# Everything that needs a GPU: build here, then run benches/gpu/run.sh on a machine with one.
gpu-pack:
    benches/gpu/pack

# The copies of /openapi.json in docs/, written anew.
openapi:
    SCONCE_WRITE_OPENAPI=1 cargo test -p sconce-server --test server --locked -- openapi::the_documents_in_the_repository

# The book as a site under target/book; needs what tests/book/requirements.txt names.
book:
    mkdocs build

# Licences, sources and advisories of dependencies.
deny:
    cargo deny check
