//! JSON among text.

use sconce_text::ToolFormat;

use super::{call, calls, check, cut, text};

#[test]
fn llama_json_calls() {
    check(
        calls(ToolFormat::Llama3Json),
        &[
            (
                "Hello { world }; and {\"a\": {\"b\": 1}}",
                &[text("Hello { world }; and {\"a\": {\"b\": 1}}")],
            ),
            (
                "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
                &[call("get_weather", "{\"city\": \"Paris\"}")],
            ),
            (
                "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
                &[call("get_weather", "{\"city\": \"Paris\"}")],
            ),
            (
                "{\"name\": \"f\", \"parameters\": {\"s\": \"a; } { b\"}}; {\"name\": \"g\", \"parameters\": {}}",
                &[call("f", "{\"s\": \"a; } { b\"}"), call("g", "{}")],
            ),
            (
                "<|python_tag|>{\"name\": \"f\", \"parameters\": {}};<|python_tag|>{\"name\": \"g\", \"arguments\": {}};",
                &[call("f", "{}"), call("g", "{}")],
            ),
            (
                "I will. {\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": {\"b\": []}}} There; done.",
                &[text("I will. "), call("f", "{\"a\": {\"b\": []}}"), text(" There; done.")],
            ),
            ("{\"name\": \"get_time\"}", &[call("get_time", "{}")]),
            ("<|python_tag|>{\"name\": \"unknown\"}", &[call("unknown", "{}")]),
            ("{\"parameters\": {\"a\": 1}, \"name\": \"f\"}", &[call("f", "{\"a\": 1}")]),
            (
                r#"{"name": "f", "parameters": {"s": "\ud83d\ude00 é \"<|python_tag|>\" 🦖"}}"#,
                &[call("f", r#"{"s": "\ud83d\ude00 é \"<|python_tag|>\" 🦖"}"#)],
            ),
            // Other JSON.
            ("{\"name\": \"Ann\", \"age\": 3}", &[text("{\"name\": \"Ann\", \"age\": 3}")]),
            ("{\"name\": \"Ann\"}", &[text("{\"name\": \"Ann\"}")]),
            (
                "{\"name\": \"Ann\", \"parameters\": 3}",
                &[text("{\"name\": \"Ann\", \"parameters\": 3}")],
            ),
            (
                "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"d\"}}",
                &[text(
                    "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"d\"}}",
                )],
            ),
            ("<|python_tag|>print(1)", &[text("<|python_tag|>print(1)")]),
            ("{ {\"name\": \"f\", \"parameters\": {}}", &[text("{ "), call("f", "{}")]),
            // Cut.
            ("{\"name\": \"f\", \"para", &[text("{\"name\": \"f\", \"para")]),
            ("{\"name\": \"f\", \"parameters\": ", &[text("{\"name\": \"f\", \"parameters\": ")]),
            ("{\"name\": \"f\", \"parameters\": {\"a\": 1", &[cut("f", "{\"a\": 1")]),
            // Broken.
            (
                "{\"name\": \"f\", \"parameters\": {\"a\": 'x'}}",
                &[cut("f", "{\"a\": "), text("'x'}}")],
            ),
            (
                "{\"name\": \"f\", \"parameters\": {}}, {\"name\": \"g\", \"parameters\": {}}",
                &[call("f", "{}"), text(", "), call("g", "{}")],
            ),
        ],
    );
}
