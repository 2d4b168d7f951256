//! After `[TOOL_CALLS]`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Part, both, call, calls, check, cut, text, thought};

#[test]
fn mistral_calls_in_an_array() {
    check(
        calls(ToolFormat::Mistral),
        &[
            ("A [TOOL] call", &[text("A [TOOL] call")]),
            (
                "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]",
                &[call("get_weather", "{\"city\": \"Paris\"}")],
            ),
            (
                "Yes. [TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}, \"id\": \"123456789\"}, {\"name\": \"g\", \"arguments\": {\"a\": [[]]}, \"id\": \"abcdefghi\"}] Done.",
                &[text("Yes. "), call("f", "{}"), call("g", "{\"a\": [[]]}"), text(" Done.")],
            ),
            (
                "[TOOL_CALLS] [{\"arguments\": {\"a\": 1}, \"name\": \"f\"}]",
                &[call("f", "{\"a\": 1}")],
            ),
            ("[TOOL_CALLS] {\"name\": \"f\"}", &[call("f", "{}")]),
            (
                r#"[TOOL_CALLS] [{"name": "f", "arguments": {"s": "}]; [TOOL_CALLS] \" \ud83d\ude00 é"}}]"#,
                &[call("f", r#"{"s": "}]; [TOOL_CALLS] \" \ud83d\ude00 é"}"#)],
            ),
            ("[TOOL_CALLS] [{\"name\": \"f\", \"arg", &[cut("f", "")]),
            ("[TOOL_CALLS] [{\"name\": \"f\"},", &[call("f", "{}"), text(",")]),
            ("[TOOL_CALLS] [{\"name\": \"f\"} x", &[call("f", "{}"), text(" x")]),
            ("[TOOL_CALLS] [1]", &[text("[TOOL_CALLS] [1]")]),
        ],
    );
}

#[test]
fn mistral_calls_of_a_name() {
    let identified = Part::Call {
        name: "f".to_owned(),
        id: Some("abc".to_owned()),
        arguments: "{}".to_owned(),
        is_complete: true,
    };
    check(
        both(ToolFormat::Mistral, ReasoningFormat::Mistral),
        &[
            (
                "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}",
                &[call("get_weather", "{\"city\": \"Paris\"}")],
            ),
            (
                "Yes.[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g-h[ARGS]{\"a\": {\"b\": 1}} End",
                &[text("Yes."), call("f", "{}"), call("g-h", "{\"a\": {\"b\": 1}}"), text(" End")],
            ),
            ("[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}", &[identified]),
            ("[TOOL_CALLS]f{\"a\": 1}", &[call("f", "{\"a\": 1}")]),
            (
                "[TOOL_CALLS]f[ARGS]{\"s\": \"[ARGS]};[THINK]\"}",
                &[call("f", "{\"s\": \"[ARGS]};[THINK]\"}")],
            ),
            ("[THINK]Well [TH.[/THINK]No.", &[thought("Well [TH."), text("No.")]),
            ("[THINK]Well\n[TOOL_CALLS]f[ARGS]{}", &[thought("Well"), call("f", "{}")]),
            ("[THINK]Well", &[thought("Well")]),
            ("[TOOL_CALLS]get_w", &[text("[TOOL_CALLS]get_w")]),
            ("[TOOL_CALLS]f[ARGS", &[text("[TOOL_CALLS]f[ARGS")]),
            ("[TOOL_CALLS]f[ARGS]{\"a", &[cut("f", "{\"a")]),
            ("[TOOL_CALLS]f[ARGS]{a: 1}", &[cut("f", "{"), text("a: 1}")]),
            ("[TOOL_CALLS]f (x)", &[text("[TOOL_CALLS]f (x)")]),
            ("[TOOL_CALLS]f[OTHER]{}", &[text("[TOOL_CALLS]f[OTHER]{}")]),
        ],
    );
}
