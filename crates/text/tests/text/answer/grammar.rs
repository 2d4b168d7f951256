//! Grammars of calls, by their text.

use sconce_text::{AnswerTool, Beside, ToolFormat};
use serde_json::{Value, json};

const STYLE: &str =
    r#""x-guidance":{"whitespace_flexible":false,"item_separator":", ","key_separator":": "}"#;

fn tool(name: &str, parameters: Option<Value>) -> AnswerTool {
    AnswerTool { name: name.to_owned(), parameters }
}

/// A grammar where markers are text.
fn plain(format: ToolFormat, tools: &[AnswerTool]) -> Option<String> {
    format.grammar(tools, Beside::Nothing, true, &|_| None)
}

fn lines(lines: &[&str]) -> Option<String> {
    Some(lines.join("\n").replace("STYLE", STYLE) + "\n")
}

/// What the arguments of a call are held to by a tool's schema.
fn held(schema: &Value) -> Value {
    let grammar = plain(ToolFormat::Hermes, &[tool("f", Some(schema.clone()))]).expect("one");
    let rule = grammar.lines().find_map(|line| line.strip_prefix("arguments_0: %json "));
    let mut held: Value = serde_json::from_str(rule.expect("a rule of arguments")).expect("JSON");
    held.as_object_mut().expect("an object").shift_remove("x-guidance");
    held
}

#[test]
fn objects_that_list_their_properties_have_no_others() {
    let point = json!({ "type": "object", "properties": { "x": {} }, "required": ["x"] });
    let mut closed = point.clone();
    closed["additionalProperties"] = false.into();
    let around = |point: &Value| {
        json!({
            "type": "object",
            "properties": {
                "a": point,
                "b": { "type": "array", "items": point },
                "c": { "anyOf": [{ "$ref": "#/$defs/point" }, { "type": "null" }] },
            },
            "$defs": { "point": point },
            "additionalProperties": false,
        })
    };
    assert_eq!(held(&around(&point)), around(&closed));
    // What says anything of others, and objects of which several schemas apply, stay as they are.
    let alone = [
        json!({ "type": "object" }),
        json!({ "type": "object", "properties": { "x": {} }, "additionalProperties": true }),
        json!({ "type": "object", "properties": { "x": {} }, "patternProperties": { "^y": {} } }),
        json!({ "type": "object", "properties": { "x": {} }, "minProperties": 2 }),
        json!({ "type": "object", "properties": { "x": {} }, "required": ["x", "y"] }),
        json!({ "type": "object", "allOf": [point.clone(), { "properties": { "y": {} } }] }),
        json!({
            "type": "object", "properties": { "y": {} }, "anyOf": [{ "$ref": "#/$defs/point" }],
            "$defs": { "point": point },
        }),
        json!({
            "type": "object", "additionalProperties": true,
            "properties": { "p": { "$ref": "#/$defs/point", "required": ["y"] } },
            "$defs": { "point": point },
        }),
    ];
    for schema in alone {
        assert_eq!(held(&schema), schema);
    }
}

#[test]
fn json_calls_have_a_rule_a_tool() {
    let tools = [
        tool("get_time", None),
        tool(
            "a\"b",
            Some(json!({ "properties": { "x": { "$ref": "#/$defs/X" } }, "$defs": { "X": {} } })),
        ),
    ];
    let expected = lines(&[
        r#"start:  "<tool_call>" "\n" (call_1 | call_3) "\n" "</tool_call>" ("\n" "<tool_call>" "\n" (call_1 | call_3) "\n" "</tool_call>")* "#,
        r#"arguments_0: %json {"type":"object","additionalProperties":false,STYLE}"#,
        r#"call_1: "{\"name\": \"get_time\", \"arguments\": " arguments_0 "}""#,
        r##"arguments_2: %json {"properties":{"x":{"$ref":"#/$defs/X"}},"$defs":{"X":{}},"additionalProperties":false,"type":"object",STYLE}"##,
        r#"call_3: "{\"name\": \"a\\\"b\", \"arguments\": " arguments_2 "}""#,
        r"TEXT: /(.|\n)*/",
    ]);
    assert_eq!(plain(ToolFormat::Hermes, &tools), expected);
    let start = |at_least_one, parallel, id: Option<u32>| {
        let beside = if at_least_one { Beside::Nothing } else { Beside::Text };
        let grammar = ToolFormat::Hermes.grammar(&tools[..1], beside, parallel, &|_| id);
        let grammar = grammar.expect("one");
        grammar.lines().filter(|line| line.starts_with(['s', 'u'])).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        start(true, false, None),
        r#"start:  "<tool_call>" "\n" (call_1) "\n" "</tool_call>"  "#
    );
    assert_eq!(
        start(false, false, None),
        "start: TEXT | until_2  \"\\n\" (call_1) \"\\n\" \"</tool_call>\"  \nuntil_2[lazy]: TEXT \"<tool_call>\""
    );
    assert_eq!(
        start(false, false, Some(7)),
        r#"start: TEXT | TEXT <[7]>  "\n" (call_1) "\n" <[7]>  "#
    );
}

#[test]
fn markers_are_tokens_where_there_are_such() {
    let tools = [tool("f", None)];
    let arguments = r#"arguments_0: %json {"type":"object","additionalProperties":false,STYLE}"#;
    let text = r"TEXT: /(.|\n)*/";
    let id = |token: &str| {
        let tokens = ["[TOOL_CALLS]", "[ARGS]", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"];
        tokens.iter().position(|one| *one == token).map(|at| u32::try_from(at).expect("few"))
    };
    assert_eq!(
        ToolFormat::Mistral.grammar(&tools, Beside::Nothing, false, &id),
        lines(&["start:  <[0]> (call_1)   ", arguments, r#"call_1: "f" <[1]> arguments_0"#, text])
    );
    assert_eq!(
        ToolFormat::Mistral.grammar(&tools, Beside::Nothing, false, &|_| None),
        lines(&[
            r#"start: "[TOOL_CALLS]" " "? "["  (call_1)   "]""#,
            arguments,
            r#"call_1: "{\"name\": \"f\", \"arguments\": " arguments_0 /(, "id": "[a-zA-Z0-9]{9}")?}/"#,
            text,
        ])
    );
    assert_eq!(
        ToolFormat::DeepSeekV31.grammar(&tools, Beside::Nothing, false, &id),
        lines(&[
            r#"start: <[2]> "<｜tool▁call▁begin｜>" (call_1) "<｜tool▁call▁end｜>"  "<｜tool▁calls▁end｜>""#,
            arguments,
            r#"call_1: "f" <[3]> arguments_0"#,
            text,
        ])
    );
}

#[test]
fn elements_have_a_rule_a_parameter() {
    let schema = json!({
        "type": "object",
        "properties": {
            "code": { "type": "string" },
            "days": { "$ref": "#/$defs/Days" },
            "unit": { "enum": ["C", "F"] },
        },
        "required": ["days"],
        "$defs": { "Days": { "type": "integer" } },
    });
    let tools = [tool("run", Some(schema))];
    let days =
        r##"value_2: %json {"$ref":"#/$defs/Days","$defs":{"Days":{"type":"integer"}},STYLE}"##;
    assert_eq!(
        ToolFormat::Qwen3Xml.grammar(&tools, Beside::Nothing, false, &|_| None),
        lines(&[
            r#"start:  "<tool_call>" "\n" (call_5) "</tool_call>"  "#,
            r#"until_0[lazy]: TEXT "\n</parameter>\n""#,
            r#"parameter_1: "<parameter=code>\n" until_0 "#,
            days,
            r#"parameter_3: "<parameter=days>\n" value_2 "\n</parameter>\n" "#,
            r#"parameter_4: "<parameter=unit>\n" ("C" | "F") "\n</parameter>\n" "#,
            r#"call_5: "<function=run>\n" parameter_1? parameter_3 parameter_4?  "</function>\n""#,
            r"TEXT: /(.|\n)*/",
        ])
    );
    assert_eq!(
        ToolFormat::Glm45
            .grammar(&tools, Beside::Nothing, false, &|token| (token == "</arg_value>")
                .then_some(9)),
        lines(&[
            r#"start:  "<tool_call>" (call_4) "</tool_call>"  "#,
            r#"parameter_0: "<arg_key>" "code" "</arg_key>" "\n"? "<arg_value>" TEXT <[9]> "\n"?"#,
            &days.replace("value_2", "value_1"),
            r#"parameter_2: "<arg_key>" "days" "</arg_key>" "\n"? "<arg_value>" value_1 <[9]> "\n"?"#,
            r#"parameter_3: "<arg_key>" "unit" "</arg_key>" "\n"? "<arg_value>" ("C" | "F") <[9]> "\n"?"#,
            r#"call_4: "run" "\n"? parameter_0? parameter_2 parameter_3? "#,
            r"TEXT: /(.|\n)*/",
        ])
    );
}

#[test]
fn a_form_stands_instead_of_calls() {
    let tools = [tool("f", None)];
    let starts = |format: ToolFormat, analysis| {
        let beside = Beside::Form { json: "%json {}", analysis };
        let grammar = format.grammar(&tools, beside, false, &|_| None).expect("one");
        let told =
            |line: &&str| ["start", "calls", "form"].iter().any(|kind| line.starts_with(kind));
        grammar.lines().filter(told).collect::<Vec<_>>().join("\n")
    };
    let calls = r#"calls_2:  "<tool_call>" "\n" (call_1) "\n" "</tool_call>"  "#;
    let form = "form_3: %json {}";
    for analysis in [false, true] {
        assert_eq!(
            starts(ToolFormat::Hermes, analysis),
            format!("start: calls_2 | form_3\n{calls}\n{form}")
        );
    }
    let harmony = starts(ToolFormat::OpenAi, true);
    let start = "start: calls_4 | message_1? \"<|channel|>\" \"final\" \"<|message|>\" form_5";
    assert!(harmony.starts_with(start), "{harmony}");
    let harmony = starts(ToolFormat::OpenAi, false);
    assert!(!harmony.contains("message_1?"), "{harmony}");
}

#[test]
fn what_no_grammar_says_has_none() {
    let tools = [tool("f", None)];
    for name in ToolFormat::names() {
        let format = ToolFormat::from_name(name).expect("it is known");
        let has = !matches!(format, ToolFormat::Pythonic | ToolFormat::Gemma3 | ToolFormat::Gemma4);
        let form = Beside::Form { json: "%json {}", analysis: false };
        for beside in [Beside::Nothing, Beside::Text, form] {
            let grammar = format.grammar(&tools, beside, true, &|_| None);
            assert_eq!(grammar.is_some(), has, "{name}");
        }
        assert_eq!(plain(format, &[]), None);
    }
    for schema in [
        json!({ "properties": { "a": { "type": "string", "pattern": "x" } } }),
        json!({ "properties": { "a": { "anyOf": [{ "format": "date" }, { "type": "null" }] } } }),
        json!({ "properties": {}, "required": ["a"] }),
        json!({ "anyOf": [{}] }),
        json!(true),
    ] {
        let tools = [tool("f", Some(schema.clone()))];
        assert_eq!(plain(ToolFormat::Qwen3Xml, &tools), None, "{schema}");
        assert!(plain(ToolFormat::Hermes, &tools).is_some(), "{schema}");
    }
    for schema in [
        json!({ "properties": { "a": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null } } }),
        json!({ "properties": { "a": { "type": ["string", "integer"] } } }),
        json!({ "properties": { "a": true, "b": {} }, "description": "d" }),
    ] {
        let tools = [tool("f", Some(schema.clone()))];
        let grammar = plain(ToolFormat::Qwen3Xml, &tools).expect("text says it");
        assert!(grammar.contains("parameter_1: \"<parameter=a>\\n\" until_0"), "{grammar}");
    }
}

/// Each reference leads back to as many: looked at one by one there is no end of them, and
/// none of this test.
#[test]
fn a_schema_of_references_to_itself_is_read_within_bounds() {
    let back = vec![json!({ "$ref": "#/$defs/d" }); 1000];
    for key in ["allOf", "anyOf", "oneOf"] {
        let schema = json!({
            "type": "object", "properties": { "x": { "$ref": "#/$defs/d" } },
            "$defs": { "d": { key: back } },
        });
        for format in [ToolFormat::Qwen3Xml, ToolFormat::Glm45] {
            let grammar = plain(format, &[tool("f", Some(schema.clone()))]);
            assert_eq!(grammar, None, "{key}: what it asks of a string is not known");
        }
    }
}
