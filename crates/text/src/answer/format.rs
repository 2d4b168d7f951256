//! The formats by name, by template, and by their markers.

use super::{call::Start, json_call, literal::GEMMA_QUOTE, named::Layout, python, xml};

/// How a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// JSON in `<tool_call>`: Hermes, Qwen 2.5, Qwen 3, QwQ.
    Hermes,
    /// `<function=…><parameter=…>`: Qwen3-Coder, Qwen 3.5.
    Qwen3Xml,
    /// JSON among the text or after `<|python_tag|>`: Llama 3.1 to 3.3.
    Llama3Json,
    /// A list of Python calls: Llama 3.2, Llama 4, LFM 2.
    Pythonic,
    /// After `[TOOL_CALLS]`: Mistral.
    Mistral,
    /// DeepSeek V3 and R1.
    DeepSeekV3,
    /// DeepSeek V3.1.
    DeepSeekV31,
    /// A block of `tool_code`: Gemma 3.
    Gemma3,
    /// After `<|tool_call>`: Gemma 4.
    Gemma4,
    /// Harmony's channels: GPT-OSS.
    OpenAi,
    /// `<arg_key>` and `<arg_value>`: GLM 4.5 to 4.7.
    Glm45,
    /// Kimi K2.
    KimiK2,
    /// An array after `functools` or `<|tool_call|>`: Phi-4-mini, Granite 3.
    Phi4MiniJson,
}

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasoningFormat {
    /// `<think>…</think>`.
    Qwen3,
    /// The same, but the answer begins with reasoning whether or not the tag is written.
    DeepSeekR1,
    /// `[THINK]…[/THINK]`.
    Mistral,
    /// The channel of thought.
    Gemma4,
    /// Harmony's channel of analysis.
    OpenAiGptOss,
}

/// vLLM's names (of `--tool-call-parser`), and `gemma3`; a format's own name comes first.
const TOOL_NAMES: &[(&str, ToolFormat)] = &[
    ("hermes", ToolFormat::Hermes),
    ("qwen3_xml", ToolFormat::Qwen3Xml),
    ("qwen3_coder", ToolFormat::Qwen3Xml),
    ("llama3_json", ToolFormat::Llama3Json),
    ("llama4_json", ToolFormat::Llama3Json),
    ("pythonic", ToolFormat::Pythonic),
    ("llama4_pythonic", ToolFormat::Pythonic),
    ("lfm2", ToolFormat::Pythonic),
    ("mistral", ToolFormat::Mistral),
    ("deepseek_v3", ToolFormat::DeepSeekV3),
    ("deepseek_v31", ToolFormat::DeepSeekV31),
    ("gemma3", ToolFormat::Gemma3),
    ("gemma4", ToolFormat::Gemma4),
    ("openai", ToolFormat::OpenAi),
    ("glm45", ToolFormat::Glm45),
    ("glm47", ToolFormat::Glm45),
    ("kimi_k2", ToolFormat::KimiK2),
    ("phi4_mini_json", ToolFormat::Phi4MiniJson),
];

/// vLLM's names (of `--reasoning-parser`); a format's own name comes first.
const REASONING_NAMES: &[(&str, ReasoningFormat)] = &[
    ("qwen3", ReasoningFormat::Qwen3),
    ("glm45", ReasoningFormat::Qwen3),
    ("glm47", ReasoningFormat::Qwen3),
    ("kimi_k2", ReasoningFormat::Qwen3),
    ("deepseek_v3", ReasoningFormat::Qwen3),
    ("deepseek_r1", ReasoningFormat::DeepSeekR1),
    ("mistral", ReasoningFormat::Mistral),
    ("gemma4", ReasoningFormat::Gemma4),
    ("openai_gptoss", ReasoningFormat::OpenAiGptOss),
];

fn named<F: Copy>(names: &[(&str, F)], name: &str) -> Option<F> {
    names.iter().find(|(one, _)| *one == name).map(|(_, format)| *format)
}

fn name_of<F: PartialEq>(names: &[(&'static str, F)], format: &F) -> &'static str {
    names.iter().find(|(_, one)| one == format).map(|(name, _)| *name).expect("each has a name")
}

impl ToolFormat {
    /// The names that [`ToolFormat::from_name`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TOOL_NAMES.iter().map(|(name, _)| *name)
    }

    /// A format by vLLM's name of its parser, or `gemma3`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        named(TOOL_NAMES, name)
    }

    /// Its name; of several, the first of [`ToolFormat::names`].
    #[must_use]
    pub fn name(self) -> &'static str {
        name_of(TOOL_NAMES, &self)
    }

    /// The format whose markers a chat template's source has. Templates that write
    /// calls in a way that is not known here give none.
    #[must_use]
    pub fn detect(chat_template: &str) -> Option<Self> {
        let has = |marker: &str| chat_template.contains(marker);
        Some(if has("<|channel|>") && has("<|message|>") {
            Self::OpenAi
        } else if has("<|tool_call>") && has("call:") {
            Self::Gemma4
        } else if has("<｜tool▁call▁begin｜>") {
            if has("```json") { Self::DeepSeekV3 } else { Self::DeepSeekV31 }
        } else if has("<|tool_calls_section_begin|>") {
            Self::KimiK2
        } else if has("<tool_call>") && has("<arg_key>") {
            Self::Glm45
        } else if has("<tool_call>") && has("<function=") && has("<parameter=") {
            Self::Qwen3Xml
        } else if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("<tool_call>") && has("\"name\"") && has("\"arguments\"") {
            Self::Hermes
        } else if has("functools") || has("<|tool_call|>") {
            Self::Phi4MiniJson
        } else if has("```tool_code") {
            Self::Gemma3
        } else if has("<|python_start|>") || has("<|tool_call_start|>") {
            Self::Pythonic
        } else if has("<|start_header_id|>") && has("\"parameters\": ") {
            Self::Llama3Json
        } else {
            return None;
        })
    }

    /// Whether an answer in JSON of a schema may begin as calls do in this format, so that the two
    /// cannot be told apart.
    #[must_use]
    pub fn may_begin_as_call(self, schema: &serde_json::Value) -> bool {
        self == Self::Llama3Json && super::schema::may_begin_as_call(schema, schema)
    }

    /// What begins calls.
    pub(super) fn starts(self) -> &'static [(&'static str, Start)] {
        use json_call::Place::{AfterMarker, Array, InText};
        const KIMI: Start = Start::Named(Layout::KimiK2);
        match self {
            Self::Hermes => &[("<tool_call>", Start::Json(AfterMarker))],
            Self::Qwen3Xml => &[
                ("<tool_call>", Start::Xml(xml::Dialect::Qwen, "")),
                ("<function=", Start::Xml(xml::Dialect::Qwen, "<function=")),
            ],
            Self::Llama3Json => {
                &[("<|python_tag|>", Start::Json(AfterMarker)), ("{", Start::Json(InText))]
            }
            Self::Pythonic => &[("[", Start::Python(python::Place::List))],
            Self::Mistral => &[("[TOOL_CALLS]", Start::Mistral)],
            Self::DeepSeekV3 => &[("<｜tool▁call▁begin｜>", Start::Named(Layout::DeepSeekV3))],
            Self::DeepSeekV31 => &[("<｜tool▁call▁begin｜>", Start::Named(Layout::DeepSeekV31))],
            Self::Gemma3 => &[("```tool_code\n", Start::Python(python::Place::Fence))],
            Self::Gemma4 => &[("<|tool_call>", Start::Gemma)],
            Self::OpenAi => &[],
            Self::Glm45 => &[("<tool_call>", Start::Xml(xml::Dialect::Glm, ""))],
            Self::KimiK2 => &[("<|tool_call_begin|>", KIMI)],
            Self::Phi4MiniJson => {
                &[("functools[", Start::Json(Array)), ("<|tool_call|>[", Start::Json(Array))]
            }
        }
    }

    /// What stands before or around calls and is no text.
    pub(super) fn frames(self) -> &'static [&'static str] {
        match self {
            Self::Pythonic => &["<|python_start|>", "<|tool_call_start|>"],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &["<｜tool▁calls▁begin｜>"],
            Self::KimiK2 => &["<|tool_calls_section_begin|>"],
            _ => &[],
        }
    }

    /// What stands after calls and is no text there.
    pub(super) fn ends(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Qwen3Xml => &["</tool_call>"],
            Self::Llama3Json => &[";"],
            Self::Pythonic => &["<|python_end|>", "<|tool_call_end|>"],
            Self::DeepSeekV3 => &["```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
            Self::DeepSeekV31 => &["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
            Self::Gemma4 => &["<tool_call|>", "<|tool_response>"],
            Self::KimiK2 => &["<|tool_call_end|>", "<|tool_calls_section_end|>"],
            Self::Phi4MiniJson => &["<|/tool_call|>"],
            Self::Mistral | Self::Gemma3 | Self::OpenAi | Self::Glm45 => &[],
        }
    }

    /// Whether calls begin with special tokens that no model writes in its thoughts:
    /// they end reasoning that was not closed.
    pub(super) fn ends_reasoning(self) -> bool {
        matches!(
            self,
            Self::Mistral | Self::DeepSeekV3 | Self::DeepSeekV31 | Self::Gemma4 | Self::KimiK2
        )
    }

    /// Markers within calls.
    pub(super) fn inner(self) -> &'static [&'static str] {
        match self {
            Self::Mistral => &["[ARGS]", "[CALL_ID]"],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &["<｜tool▁sep｜>"],
            Self::Gemma4 => &[GEMMA_QUOTE],
            Self::KimiK2 => &["<|tool_call_argument_begin|>"],
            Self::Qwen3Xml => &["<parameter=", "</parameter>", "</function>"],
            Self::Glm45 => {
                &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"]
            }
            _ => &[],
        }
    }
}

impl ReasoningFormat {
    /// The names that [`ReasoningFormat::from_name`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        REASONING_NAMES.iter().map(|(name, _)| *name)
    }

    /// A format by vLLM's name of its parser.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        named(REASONING_NAMES, name)
    }

    /// Its name; of several, the first of [`ReasoningFormat::names`].
    #[must_use]
    pub fn name(self) -> &'static str {
        name_of(REASONING_NAMES, &self)
    }

    /// The format whose markers a chat template's source has.
    #[must_use]
    pub fn detect(chat_template: &str) -> Option<Self> {
        let has = |marker: &str| chat_template.contains(marker);
        Some(if has("<|channel|>") && has("<|message|>") {
            Self::OpenAiGptOss
        } else if has("<|channel>") {
            Self::Gemma4
        } else if has("[THINK]") {
            Self::Mistral
        } else if has("</think>") {
            // A template that knows the opening tag writes it into the prompt or leaves it to
            // the model; where it is not known, the model may leave it out.
            if has("<think>") { Self::Qwen3 } else { Self::DeepSeekR1 }
        } else {
            return None;
        })
    }

    /// The marker that begins reasoning, where the format has one.
    #[must_use]
    pub fn opening(self) -> Option<&'static str> {
        Some(self.tags()?.0)
    }

    /// The marker that ends reasoning, where the format has one.
    #[must_use]
    pub fn closing(self) -> Option<&'static str> {
        Some(self.tags()?.1)
    }

    /// The opening and the closing marker. Harmony has none of its own.
    pub(super) fn tags(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Qwen3 | Self::DeepSeekR1 => Some(("<think>", "</think>")),
            Self::Mistral => Some(("[THINK]", "[/THINK]")),
            Self::Gemma4 => Some(("<|channel>thought", "<channel|>")),
            Self::OpenAiGptOss => None,
        }
    }

    /// Whether an answer to such a prompt may itself begin reasoning: the prompt has neither
    /// begun it nor, as where a client wants none, ended it.
    #[must_use]
    pub fn may_begin_after(self, prompt_end: &str) -> bool {
        let is_ended = |(_, close)| prompt_end.trim_end().ends_with(close);
        !self.begins_inside(prompt_end) && !self.tags().is_some_and(is_ended)
    }

    /// Whether an answer to such a prompt begins within reasoning.
    pub(super) fn begins_inside(self, prompt_end: &str) -> bool {
        let Some((open, close)) = self.tags() else { return false };
        let prompt = prompt_end.trim_end();
        prompt.ends_with(open) || self == Self::DeepSeekR1 && !prompt.ends_with(close)
    }
}
