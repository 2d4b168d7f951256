//! Answers that are calls or JSON of a form: drawn at random and read as a server reads them, each
//! is one or the other, and follows its schema.

use std::sync::Arc;

use jsonschema::Draft;
use sconce_grammar::Source;
use sconce_text::{AnswerEvent, AnswerParser, AnswerTool, Beside, ReasoningFormat, ToolFormat};
use serde_json::{Value, json};

use crate::{
    models::{Model, rng},
    suite::validator,
};

const WALKS: u64 = 120;

fn is_valid(schema: &Value, value: &Value) -> bool {
    validator(schema, Draft::Draft202012).is_valid(value)
}
const MOST_TOKENS: usize = 600;

fn tools() -> Arc<[AnswerTool]> {
    let tool = |name: &str, parameters: Value| AnswerTool {
        name: name.to_owned(),
        parameters: Some(parameters),
    };
    Arc::new([
        tool(
            "weather",
            json!({
                "type": "object", "additionalProperties": false, "required": ["city"],
                "properties": {
                    "city": { "enum": ["Bern", "Rome"] },
                    "days": { "type": "integer", "minimum": 1, "maximum": 9 },
                },
            }),
        ),
        tool("now", json!({ "type": "object", "properties": {}, "additionalProperties": false })),
    ])
}

/// Schemas with the words of calls in them.
fn forms() -> Vec<Value> {
    vec![
        json!({
            "type": "object", "additionalProperties": false, "required": ["name", "age"],
            "properties": {
                "name": { "enum": ["weather", "now", "<tool_call>", "</think>", "[TOOL_CALLS]"] },
                "age": { "type": "integer", "minimum": 0, "maximum": 99 },
            },
        }),
        json!({ "enum": [{ "name": "now" }, ["functools["], "<|channel|>final", null, false] }),
        json!({
            "type": "array", "minItems": 1, "maxItems": 2,
            "items": { "enum": ["<think>", "<|call|>", { "name": "now", "parameters": {} }] },
        }),
    ]
}

struct Read {
    text: String,
    calls: Vec<(String, String, bool)>,
}

fn read(parser: &mut AnswerParser, answer: &str) -> Read {
    let mut events = Vec::new();
    parser.push(answer, &mut events);
    parser.finish(&mut events);
    let mut read = Read { text: String::new(), calls: Vec::new() };
    for event in events {
        match event {
            AnswerEvent::Text(text) => read.text += &text,
            AnswerEvent::Reasoning(text) => panic!("no grammar has a thought: {text:?}"),
            AnswerEvent::CallStart { name, .. } => read.calls.push((name, String::new(), false)),
            AnswerEvent::CallArguments { index, json } => read.calls[index].1 += &json,
            AnswerEvent::CallEnd { index, is_complete } => read.calls[index].2 = is_complete,
        }
    }
    read
}

#[test]
fn an_answer_is_calls_or_has_the_form() {
    let (model, tools) = (Model::bytes(), tools());
    for name in ToolFormat::names() {
        let format = ToolFormat::from_name(name).expect("it is known");
        let is_harmony = format == ToolFormat::OpenAi;
        let reasoning = (!is_harmony).then_some(ReasoningFormat::Qwen3);
        for schema in forms() {
            assert!(!format.may_begin_as_call(&schema), "{name}: {schema}");
            let source = Source::JsonSchema(schema.clone());
            let (rule, _) = source.json_rule().expect("it is enforced").expect("it is JSON");
            let beside = Beside::Form { json: &rule, analysis: false };
            let Some(grammar) = format.grammar(&tools, beside, true, &|_| None) else { continue };
            let grammar = model.compile(&Source::Own(grammar)).expect("it compiles");
            let (mut called, mut told) = (0, 0);
            for seed in 0..WALKS {
                let mut constraint = grammar.constraint();
                let mut rng = rng(seed);
                let Some(answer) = model.draw(&mut constraint, &mut rng, MOST_TOKENS) else {
                    continue;
                };
                let mut parser =
                    AnswerParser::of_form(Some(format), reasoning, Arc::clone(&tools), "");
                let read = read(&mut parser, &answer);
                let place = format!("{name}, seed {seed}, {schema}: {answer:?}");
                if read.calls.is_empty() {
                    told += 1;
                    let value = serde_json::from_str(&read.text);
                    let value = value.unwrap_or_else(|error| panic!("{place}: {error}"));
                    assert!(is_valid(&schema, &value), "{place}");
                    continue;
                }
                called += 1;
                assert_eq!(read.text, "", "{place}");
                for (name, arguments, is_complete) in &read.calls {
                    let tool = tools.iter().find(|tool| tool.name == *name).expect("a tool");
                    let schema = tool.parameters.as_ref().expect("a schema");
                    let value = serde_json::from_str(arguments).expect("JSON");
                    assert!(*is_complete && is_valid(schema, &value), "{place}");
                }
            }
            assert!(called > 0 && told > 0, "{name}: {called} calls, {told} texts of {schema}");
        }
    }
}
