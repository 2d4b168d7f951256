//! Grammars of well-formed calls, in llguidance's dialect of Lark.

use std::fmt::Write as _;

use sconce_types::TokenId;
use serde_json::{Map, Value, json};

use super::{AnswerTool, ToolFormat, json::quote, schema};

/// What an answer may be beside calls.
#[derive(Clone, Copy, Debug)]
pub enum Beside<'a> {
    /// Nothing: it calls.
    Nothing,
    /// Any text, which may end with calls.
    Text,
    /// Text of a form, instead of calls.
    Form {
        /// JSON of a schema: the body of a rule (`%json {…}`).
        json: &'a str,
        /// Whether either may follow an analysis, where the format is Harmony. Thoughts of other
        /// formats are no part of the grammar.
        analysis: bool,
    },
}

/// The identifier of a special token, if the tokenizer has it.
type SpecialToken<'a> = &'a dyn Fn(&str) -> Option<TokenId>;

/// The rules that are written, and what they are written from.
struct Grammar<'a> {
    special_token: SpecialToken<'a>,
    rules: String,
    count: usize,
}

/// What stands around calls, each as an expression.
#[derive(Default)]
struct Frame {
    before: String,
    /// Opens and closes each call.
    open: String,
    close: String,
    between: String,
    after: String,
    /// The marker that begins calls among text, if any.
    trigger: Option<&'static str>,
}

impl ToolFormat {
    /// A grammar of calls of these tools as the format writes them, with arguments by
    /// their schemas (an object that lists its properties has no others, unless its schema says
    /// something of others), or of what may be `beside` calls; with `parallel` of several calls,
    /// else of one. Markers that
    /// `special_token` knows are those tokens, others text. JSON has `, ` and `: ` between
    /// its parts and keys in the schema's order, as the models' templates write it.
    ///
    /// None if there are no tools, or if the format's values are no JSON (Gemma, Python),
    /// or, where each parameter is written by itself (GLM, Qwen3-Coder), if a schema is not
    /// a plain object or asks more of a string than to be one of several.
    #[must_use]
    pub fn grammar(
        self,
        tools: &[AnswerTool],
        beside: Beside<'_>,
        parallel: bool,
        special_token: SpecialToken<'_>,
    ) -> Option<String> {
        let mut grammar = Grammar { special_token, rules: String::new(), count: 0 };
        let frame = grammar.frame(self);
        let mut calls = Vec::new();
        for tool in tools {
            let call = grammar.call(self, tool)?;
            calls.push(grammar.rule("call", &call));
        }
        if calls.is_empty() {
            return None;
        }
        let Frame { mut before, open, close, between, after, trigger } = frame;
        if let (Self::OpenAi, Beside::Form { analysis: false, .. }) = (self, beside) {
            // An analysis would be read as text.
            before.clear();
        }
        let one = format!("{open} ({}) {close}", calls.join(" | "));
        // Harmony's answer ends with the call.
        let more = match parallel && self != Self::OpenAi {
            true => format!("({between} {one})*"),
            false => String::new(),
        };
        let calls = format!("{before} {one} {more} {after}");
        let start = match (beside, trigger) {
            (Beside::Nothing, _) => calls,
            (Beside::Text, Some(trigger)) => grammar.among_text(trigger, &calls),
            (Beside::Text, None) => grammar.instead_of_text(self, &calls),
            (Beside::Form { json, .. }, _) => grammar.instead_of_form(self, &before, &calls, json),
        };
        Some(format!("start: {start}\n{}TEXT: /(.|\\n)*/\n", grammar.rules))
    }
}

impl Grammar<'_> {
    /// A marker, as a token or as text.
    fn marker(&self, marker: &str) -> String {
        match (self.special_token)(marker) {
            Some(id) => format!("<[{id}]>"),
            None => literal(marker),
        }
    }

    /// Writes a rule; returns its name.
    fn rule(&mut self, kind: &str, body: &str) -> String {
        let name = format!("{kind}_{}", self.count);
        self.count += 1;
        writeln!(self.rules, "{name}: {body}").expect("a string takes it");
        name
    }

    /// Any text, then the marker.
    fn text_until(&mut self, marker: &str) -> String {
        if (self.special_token)(marker).is_some() {
            return format!("TEXT {}", self.marker(marker));
        }
        let name = format!("until_{}", self.count);
        self.count += 1;
        writeln!(self.rules, "{name}[lazy]: TEXT {}", literal(marker)).expect("a string takes it");
        name
    }

    fn frame(&mut self, format: ToolFormat) -> Frame {
        let marker = |text| self.marker(text);
        match format {
            ToolFormat::Hermes => Frame {
                open: format!("{} \"\\n\"", marker("<tool_call>")),
                close: format!("\"\\n\" {}", marker("</tool_call>")),
                between: "\"\\n\"".to_owned(),
                trigger: Some("<tool_call>"),
                ..Frame::default()
            },
            ToolFormat::Qwen3Xml => Frame {
                open: format!("{} \"\\n\"", marker("<tool_call>")),
                close: marker("</tool_call>"),
                between: "\"\\n\"".to_owned(),
                trigger: Some("<tool_call>"),
                ..Frame::default()
            },
            ToolFormat::Glm45 => Frame {
                open: marker("<tool_call>"),
                close: marker("</tool_call>"),
                between: "\"\\n\"?".to_owned(),
                trigger: Some("<tool_call>"),
                ..Frame::default()
            },
            ToolFormat::Llama3Json => Frame { between: "\"; \"".to_owned(), ..Frame::default() },
            ToolFormat::Mistral if self.names_functions() => Frame {
                open: marker("[TOOL_CALLS]"),
                trigger: Some("[TOOL_CALLS]"),
                ..Frame::default()
            },
            ToolFormat::Mistral => Frame {
                before: format!("{} \" \"? \"[\"", marker("[TOOL_CALLS]")),
                between: "\", \"".to_owned(),
                after: "\"]\"".to_owned(),
                trigger: Some("[TOOL_CALLS]"),
                ..Frame::default()
            },
            ToolFormat::Phi4MiniJson => {
                let has_tokens = (self.special_token)("<|tool_call|>").is_some();
                let begin = if has_tokens { "<|tool_call|>" } else { "functools" };
                let end = if has_tokens { marker("<|/tool_call|>") } else { String::new() };
                Frame {
                    before: format!("{} \"[\"", marker(begin)),
                    between: "\", \"".to_owned(),
                    after: format!("\"]\" {end}"),
                    trigger: Some(begin),
                    ..Frame::default()
                }
            }
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => Frame {
                before: marker("<｜tool▁calls▁begin｜>"),
                open: marker("<｜tool▁call▁begin｜>"),
                close: marker("<｜tool▁call▁end｜>"),
                between: "\"\\n\"?".to_owned(),
                after: marker("<｜tool▁calls▁end｜>"),
                trigger: Some("<｜tool▁calls▁begin｜>"),
            },
            ToolFormat::KimiK2 => Frame {
                before: marker("<|tool_calls_section_begin|>"),
                open: marker("<|tool_call_begin|>"),
                close: marker("<|tool_call_end|>"),
                after: marker("<|tool_calls_section_end|>"),
                trigger: Some("<|tool_calls_section_begin|>"),
                ..Frame::default()
            },
            ToolFormat::OpenAi => {
                let analysis = self.message("\"analysis\"");
                Frame { before: format!("{analysis}?"), ..Frame::default() }
            }
            ToolFormat::Pythonic | ToolFormat::Gemma3 | ToolFormat::Gemma4 => Frame::default(),
        }
    }

    /// Whether the tokenizer is one of Mistral's that name functions before arguments.
    fn names_functions(&self) -> bool {
        (self.special_token)("[ARGS]").is_some()
    }

    /// One call, without what stands around each.
    fn call(&mut self, format: ToolFormat, tool: &AnswerTool) -> Option<String> {
        let name = quote(&tool.name);
        Some(match format {
            ToolFormat::Hermes | ToolFormat::Phi4MiniJson => self.object(&name, "arguments", tool),
            ToolFormat::Llama3Json => {
                // In the pieces that JSON has for the grammar's lexer, which does not go back: an
                // answer of another form may begin with the same ones.
                let arguments = self.arguments(tool);
                let pieces = ["{", "\"name\"", ": ", &name, ", ", "\"parameters\"", ": "];
                format!("{} {arguments} \"}}\"", pieces.map(literal).join(" "))
            }
            ToolFormat::Mistral if self.names_functions() => {
                let arguments = self.arguments(tool);
                format!("{} {} {arguments}", literal(&tool.name), self.marker("[ARGS]"))
            }
            ToolFormat::Mistral => {
                let object = self.object(&name, "arguments", tool);
                object.strip_suffix("\"}\"")?.to_owned() + "/(, \"id\": \"[a-zA-Z0-9]{9}\")?}/"
            }
            ToolFormat::DeepSeekV3 => {
                let (sep, arguments) = (self.marker("<｜tool▁sep｜>"), self.arguments(tool));
                let head = literal(&format!("{}\n```json\n", tool.name));
                format!("\"function\" {sep} {head} {arguments} \"\\n```\"")
            }
            ToolFormat::DeepSeekV31 => {
                let (sep, arguments) = (self.marker("<｜tool▁sep｜>"), self.arguments(tool));
                format!("{} {sep} {arguments}", literal(&tool.name))
            }
            ToolFormat::KimiK2 => {
                let begin = self.marker("<|tool_call_argument_begin|>");
                let head = literal(&format!("functions.{}:", tool.name));
                format!("{head} /[0-9]{{1,3}}/ {begin} {}", self.arguments(tool))
            }
            ToolFormat::OpenAi => {
                let head = literal(&format!("commentary to=functions.{} ", tool.name));
                let markers = ["<|channel|>", "<|constrain|>", "<|message|>"];
                let [channel, constrain, message] = markers.map(|marker| self.marker(marker));
                format!("{channel} {head} {constrain} \"json\" {message} {}", self.arguments(tool))
            }
            ToolFormat::Qwen3Xml => {
                let head = literal(&format!("<function={}>\n", tool.name));
                format!("{head} {} \"</function>\\n\"", self.parameters(format, tool)?)
            }
            ToolFormat::Glm45 => {
                format!("{} \"\\n\"? {}", literal(&tool.name), self.parameters(format, tool)?)
            }
            ToolFormat::Pythonic | ToolFormat::Gemma3 | ToolFormat::Gemma4 => return None,
        })
    }

    /// A call as a JSON object. The arguments are a grammar of their own, so that
    /// references in their schema are resolved in it.
    fn object(&mut self, name: &str, key: &str, tool: &AnswerTool) -> String {
        let head = literal(&format!("{{\"name\": {name}, \"{key}\": "));
        format!("{head} {} \"}}\"", self.arguments(tool))
    }

    fn arguments(&mut self, tool: &AnswerTool) -> String {
        let schema = match &tool.parameters {
            Some(Value::Object(schema)) => {
                let mut schema = schema::closed(schema);
                if !schema.contains_key("type") && !schema.contains_key("$ref") {
                    schema.insert("type".to_owned(), json!("object"));
                }
                schema
            }
            _ => Map::from_iter([
                ("type".to_owned(), json!("object")),
                ("additionalProperties".to_owned(), json!(false)),
            ]),
        };
        self.json("arguments", schema)
    }

    fn json(&mut self, kind: &str, mut schema: Map<String, Value>) -> String {
        let style = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        });
        schema.insert("x-guidance".to_owned(), style);
        self.rule(kind, &format!("%json {}", Value::Object(schema)))
    }

    /// The parameters of a call, each by itself, in the schema's order.
    fn parameters(&mut self, format: ToolFormat, tool: &AnswerTool) -> Option<String> {
        let Some(root) = &tool.parameters else { return Some(String::new()) };
        let root = root.as_object()?;
        let asks = ["type", "properties", "required", "additionalProperties"];
        let notes = ["$defs", "definitions", "$schema", "title", "description"];
        if !root.keys().all(|key| asks.contains(&key.as_str()) || notes.contains(&key.as_str())) {
            return None;
        }
        let required: Vec<_> = match root.get("required") {
            Some(required) => required.as_array()?.iter().filter_map(Value::as_str).collect(),
            None => Vec::new(),
        };
        let none = Map::new();
        let properties = root.get("properties").map_or(Some(&none), Value::as_object)?;
        if !required.iter().all(|key| properties.contains_key(*key)) {
            return None;
        }
        let mut all = String::new();
        for (key, property) in properties {
            let parameter = self.parameter(format, key, property, root)?;
            let name = self.rule("parameter", &parameter);
            let optional = if required.contains(&key.as_str()) { "" } else { "?" };
            write!(all, "{name}{optional} ").expect("a string takes it");
        }
        Some(all)
    }

    fn parameter(
        &mut self,
        format: ToolFormat,
        key: &str,
        property: &Value,
        root: &Map<String, Value>,
    ) -> Option<String> {
        let (head, end, tail) = if format == ToolFormat::Qwen3Xml {
            (literal(&format!("<parameter={key}>\n")), "\n</parameter>\n", "")
        } else {
            let [open, close, value] =
                ["<arg_key>", "</arg_key>", "<arg_value>"].map(|marker| self.marker(marker));
            let head = format!("{open} {} {close} \"\\n\"? {value}", literal(key));
            (head, "</arg_value>", "\"\\n\"?")
        };
        let whole = Value::Object(root.clone());
        let value = if let Some(Value::Array(values)) = property.get("enum")
            && values.iter().all(Value::is_string)
        {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).map(literal).collect();
            format!("({}) {}", values.join(" | "), self.marker(end))
        } else if schema::allows_string(&whole, property) {
            if !allows_any_string(property) {
                return None;
            }
            self.text_until(end)
        } else {
            let mut schema = schema::closed(property.as_object()?);
            for key in ["$defs", "definitions"] {
                if let Some(definitions) = root.get(key) {
                    schema.insert(key.to_owned(), definitions.clone());
                }
            }
            format!("{} {}", self.json("value", schema), self.marker(end))
        };
        Some(format!("{head} {value} {tail}"))
    }

    /// Calls after any text, or text alone.
    fn among_text(&mut self, trigger: &str, calls: &str) -> String {
        let marker = self.marker(trigger);
        // The calls begin with their trigger, which the text's end has here.
        let rest = calls.trim_start().strip_prefix(&marker).unwrap_or(calls).to_owned();
        let head = self.text_until(trigger);
        format!("TEXT | {head} {rest}")
    }

    /// A whole message of Harmony's, and the beginning of the next.
    fn message(&mut self, channel: &str) -> String {
        let end = self.text_until("<|end|>");
        let [begin, message, start] =
            ["<|channel|>", "<|message|>", "<|start|>"].map(|marker| self.marker(marker));
        let body = format!("{begin} {channel} {message} {end} {start} \"assistant\"");
        self.rule("message", &body)
    }

    /// Calls, or text that does not begin as one.
    fn instead_of_text(&mut self, format: ToolFormat, calls: &str) -> String {
        if format == ToolFormat::OpenAi {
            let said = self.message("(\"analysis\" | \"commentary\")");
            let [channel, message] =
                ["<|channel|>", "<|message|>"].map(|marker| self.marker(marker));
            let calls = self.rule("calls", calls);
            return format!("{said}* ({calls} | {channel} \"final\" {message} TEXT)");
        }
        let text = self.rule("text", "/([^{](.|\\n)*)?/");
        format!("{text} | {calls}")
    }

    /// Calls, or JSON of a form.
    fn instead_of_form(
        &mut self,
        format: ToolFormat,
        before: &str,
        calls: &str,
        json: &str,
    ) -> String {
        let (calls, form) = (self.rule("calls", calls), self.rule("form", json));
        if format == ToolFormat::OpenAi {
            let [channel, message] =
                ["<|channel|>", "<|message|>"].map(|marker| self.marker(marker));
            return format!("{calls} | {before} {channel} \"final\" {message} {form}");
        }
        format!("{calls} | {form}")
    }
}

/// Whether nothing is asked of a string, to which plain text could not be held.
fn allows_any_string(schema: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return schema == &Value::Bool(true) };
    let notes = ["description", "title", "default", "examples"];
    let mut asked = schema.iter().filter(|(key, _)| !notes.contains(&key.as_str()));
    asked.all(|(key, value)| match (key.as_str(), value) {
        ("type", Value::String(name)) => name == "string",
        ("type", Value::Array(names)) => names.iter().any(|name| name == "string"),
        ("anyOf", Value::Array(schemas)) => schemas.iter().any(allows_any_string),
        _ => false,
    })
}

/// A text as a string of Lark, whose escapes are JSON's.
fn literal(text: &str) -> String {
    quote(text).replace('\x7f', "\\u007f")
}
