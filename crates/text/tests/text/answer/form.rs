//! Answers whose text has a form: what looks like a marker in it is text.

use sconce_text::{ReasoningFormat, ToolFormat};
use serde_json::json;

use super::{Part, Setting, WRITTEN, both, call, calls, check, text, thought};

fn form(setting: Setting) -> Setting {
    Setting { is_form: true, ..setting }
}

#[test]
fn markers_within_the_text_are_text() {
    let said =
        r#"{"a": "<tool_call>{\"name\": \"f\"}</tool_call> <think>", "b": {"name": "get_time"}}"#;
    let thought_first = format!("<think>\nHm.\n</think>\n\n{said}");
    let called = "<tool_call>\n{\"name\": \"run\", \"arguments\": {\"code\": \"1\"}}\n</tool_call>";
    let cases: &[(&str, &[Part])] = &[
        (said, &[text(said)]),
        (&thought_first, &[thought("Hm."), text(said)]),
        ("\"<tool_call>", &[text("\"<tool_call>")]),
        ("[1, \"<thin", &[text("[1, \"<thin")]),
        (called, &[call("run", "{\"code\": \"1\"}")]),
    ];
    check(form(both(ToolFormat::Hermes, ReasoningFormat::Qwen3)), cases);
    // A form of another kind may begin as a marker does.
    check(
        form(both(ToolFormat::Hermes, ReasoningFormat::Qwen3)),
        &[("<tool <think>a</think>", &[text("<tool <think>a</think>")])],
    );
    let alone = Setting { tools: None, ..both(ToolFormat::Hermes, ReasoningFormat::Qwen3) };
    check(form(alone), &cases[..4]);
    let phi = "false functools[{\"name\": \"f\", \"arguments\": {}}]";
    form(calls(ToolFormat::Phi4MiniJson)).check(phi, &[text(phi)]);
    let mistral = "[\"[TOOL_CALLS]f[ARGS]{}\"]";
    form(calls(ToolFormat::Mistral)).check(mistral, &[text(mistral)]);
}

#[test]
fn calls_of_every_format_are_calls_still() {
    for (format, written) in WRITTEN {
        if format == ToolFormat::Llama3Json {
            continue;
        }
        let said = form(calls(format)).parts([&*written("x")]);
        let [Part::Call { name, arguments, is_complete: true, .. }] = &said[..] else {
            panic!("{format:?}: {said:?}")
        };
        let arguments: serde_json::Value = serde_json::from_str(arguments).expect("JSON");
        assert_eq!((&**name, arguments), ("run", json!({ "code": "x" })), "{format:?}");
    }
}

#[test]
fn objects_that_are_no_calls_of_tools_are_text() {
    let calls = form(calls(ToolFormat::Llama3Json));
    for said in [
        r#"{"name": "Ann", "parameters": {"a": 1}}"#,
        r#"{"name": "get_time"}"#,
        r#"{"name": "get_time", "arguments": {}}"#,
        r#"{"name": "get_time", "parameters": [1]}"#,
        r#"{"parameters": {}, "name": "get_time"}"#,
        r#"{"type": "function", "name": "get_time", "parameters": {}}"#,
        r#"{"a": {"name": "get_time", "parameters": {}}}"#,
        r#"[{"name": "get_time", "parameters": {}}]"#,
        r#""{""#,
    ] {
        calls.check(said, &[text(said)]);
    }
    check(
        calls,
        &[
            (
                r#"{"name": "run", "parameters": {"code": "1"}}; {"name": "get_time", "parameters": {}}"#,
                &[call("run", r#"{"code": "1"}"#), call("get_time", "{}")],
            ),
            // What is no call is text to its end.
            (
                r#"{"name": "run", "parameters": {}}; {"name": "x"} {"name": "get_time", "parameters": {}}"#,
                &[
                    call("run", "{}"),
                    text(r#" {"name": "x"} {"name": "get_time", "parameters": {}}"#),
                ],
            ),
        ],
    );
}

#[test]
fn harmonys_final_message_is_text_to_its_end() {
    let begun = Setting {
        prompt_end: "<|start|>assistant",
        ..both(ToolFormat::OpenAi, ReasoningFormat::OpenAiGptOss)
    };
    let said = r#"{"a": "<|end|><|start|>assistant<|channel|>final<|message|>"}"#;
    let whole = format!("<|channel|>final<|message|>{said}");
    let analysis = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    let both = format!("{analysis}{whole}");
    check(
        form(begun),
        &[(&whole, &[text(said)]), (&both, &[thought("Hm."), text(said)]), (said, &[text(said)])],
    );
}

#[test]
fn schemas_that_may_begin_as_a_call_are_known() {
    let closed = |properties, required| {
        json!({
            "type": "object", "properties": properties, "required": required,
            "additionalProperties": false,
        })
    };
    let any = json!({});
    let apart = [
        closed(json!({ "name": any, "age": any }), json!(["name", "age"])),
        closed(json!({ "name": any }), json!(["name"])),
        closed(json!({ "name": any, "age": any, "parameters": any }), json!(["age"])),
        closed(json!({ "parameters": any, "name": any }), json!([])),
        json!({ "properties": { "parameters": {} } }),
        json!({ "properties": { "name": {}, "age": {} }, "required": ["age"] }),
        json!({ "type": "array", "items": {} }),
        json!({ "type": ["string", "null"] }),
        json!({ "enum": ["a", { "name": "x" }] }),
        json!({ "const": 1 }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "type": "string" } } }),
        json!({ "anyOf": [{ "type": "string" }, { "type": "array" }] }),
        json!(false),
    ];
    let alike = [
        json!({}),
        json!(true),
        json!({ "type": "object" }),
        closed(json!({ "name": any, "parameters": any }), json!([])),
        closed(json!({ "name": any, "a": any, "parameters": any }), json!([])),
        json!({ "properties": { "name": {} }, "required": ["name"] }),
        json!({ "additionalProperties": false, "patternProperties": { "^.": {} } }),
        json!({ "const": { "name": "x", "parameters": {} } }),
        json!({ "$ref": "#" }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "type": "object" } } }),
        json!({ "anyOf": [{ "type": "string" }, {}] }),
        json!({ "allOf": [{ "properties": { "a": {} }, "required": ["a"] }, {}] }),
        json!({ "anyOf": [{ "required": ["a"], "properties": { "a": {} } }], "properties": {} }),
    ];
    for (schemas, expected) in [(&apart[..], false), (&alike[..], true)] {
        for schema in schemas {
            assert_eq!(ToolFormat::Llama3Json.may_begin_as_call(schema), expected, "{schema}");
            assert!(!ToolFormat::Hermes.may_begin_as_call(schema), "{schema}");
        }
    }
}
