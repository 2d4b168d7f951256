//! The formats by name, by template and by their special tokens.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{both, calls};
use crate::templates::collection;

#[test]
fn formats_have_the_names_of_vllm() {
    for name in ToolFormat::names() {
        let format = ToolFormat::from_name(name).expect("it is known");
        assert_eq!(ToolFormat::from_name(format.name()), Some(format));
    }
    for name in ReasoningFormat::names() {
        let format = ReasoningFormat::from_name(name).expect("it is known");
        assert_eq!(ReasoningFormat::from_name(format.name()), Some(format));
    }
    assert_eq!(ToolFormat::from_name("qwen3_coder").map(ToolFormat::name), Some("qwen3_xml"));
    assert_eq!(ReasoningFormat::from_name("glm45"), Some(ReasoningFormat::Qwen3));
    assert_eq!(ToolFormat::from_name("auto"), None);
    assert_eq!(ReasoningFormat::from_name("think"), None);
}

#[test]
fn formats_are_known_by_their_templates() {
    use ReasoningFormat::{DeepSeekR1, OpenAiGptOss, Qwen3};
    use ToolFormat::{
        DeepSeekV3, DeepSeekV31, Glm45, Hermes, KimiK2, Llama3Json, OpenAi, Phi4MiniJson, Pythonic,
        Qwen3Xml,
    };
    let templates = [
        ("Qwen-Qwen2.5-7B-Instruct", Some(Hermes), None),
        ("Qwen-Qwen3-0.6B", Some(Hermes), Some(Qwen3)),
        ("Qwen-QwQ-32B", Some(Hermes), Some(Qwen3)),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", Some(Hermes), None),
        ("Qwen3-Coder", Some(Qwen3Xml), None),
        ("Qwen3.5-4B", Some(Qwen3Xml), Some(Qwen3)),
        ("GLM-4.6", Some(Glm45), Some(Qwen3)),
        ("GLM-4.7-Flash", Some(Glm45), Some(Qwen3)),
        ("moonshotai-Kimi-K2", Some(KimiK2), None),
        ("Kimi-K2-Thinking", Some(KimiK2), Some(Qwen3)),
        ("meta-llama-Llama-3.1-8B-Instruct", Some(Llama3Json), None),
        ("meta-llama-Llama-3.2-3B-Instruct", Some(Llama3Json), None),
        ("meta-llama-Llama-3.3-70B-Instruct", Some(Llama3Json), None),
        ("LFM2.5-8B-A1B", Some(Pythonic), Some(Qwen3)),
        ("mistralai-Mistral-Nemo-Instruct-2407", Some(ToolFormat::Mistral), None),
        ("Mistral-Small-3.2-24B-Instruct-2506", Some(ToolFormat::Mistral), None),
        (
            "mistralai-Ministral-3-14B-Reasoning-2512",
            Some(ToolFormat::Mistral),
            Some(ReasoningFormat::Mistral),
        ),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", Some(DeepSeekV3), Some(Qwen3)),
        ("deepseek-ai-DeepSeek-V3.1", Some(DeepSeekV31), Some(Qwen3)),
        ("google-gemma-4-31B-it", Some(ToolFormat::Gemma4), Some(ReasoningFormat::Gemma4)),
        ("google-gemma-2-2b-it", None, None),
        ("openai-gpt-oss-120b", Some(OpenAi), Some(OpenAiGptOss)),
        ("ibm-granite-granite-3.3-2B-Instruct", Some(Phi4MiniJson), Some(Qwen3)),
        ("microsoft-Phi-3.5-mini-instruct", None, None),
        ("MiniMax-M2", None, Some(Qwen3)),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", None, None),
    ];
    let collection = collection();
    for (name, tools, reasoning) in templates {
        let path = collection.join(format!("{name}.jinja"));
        let template = std::fs::read_to_string(path).expect("it is in the collection");
        assert_eq!(ToolFormat::detect(&template), tools, "calls of {name}");
        assert_eq!(ReasoningFormat::detect(&template), reasoning, "reasoning of {name}");
    }
    let r1 = "{{ content.split('</think>')[-1] }}{{ '<｜Assistant｜>' }}";
    assert_eq!(ReasoningFormat::detect(r1), Some(DeepSeekR1));
    assert_eq!(ToolFormat::detect("```tool_code"), Some(ToolFormat::Gemma3));
}

#[test]
fn markers_that_are_special_tokens_are_wanted() {
    let gemma = both(ToolFormat::Gemma4, ReasoningFormat::Gemma4).parser();
    for token in ["<|tool_call>", "<tool_call|>", "<|\"|>", "<|channel>", "<channel|>"] {
        assert!(gemma.wants(token), "{token}");
    }
    for token in ["<turn|>", "<eos>", "<|image|>", "<think>", ""] {
        assert!(!gemma.wants(token), "{token}");
    }
    assert!(calls(ToolFormat::Mistral).parser().wants("[ARGS]"));
    assert!(calls(ToolFormat::Llama3Json).parser().wants("<|python_tag|>"));
    assert!(calls(ToolFormat::KimiK2).parser().wants("<|tool_call_argument_begin|>"));
    assert!(calls(ToolFormat::DeepSeekV3).parser().wants("<｜tool▁sep｜>"));
    assert!(calls(ToolFormat::Glm45).parser().wants("</tool_call>"));
    let harmony = calls(ToolFormat::OpenAi).parser();
    assert!(harmony.wants("<|constrain|>") && harmony.wants("<|return|>"));
    assert!(!harmony.wants("<|endoftext|>"));
}
