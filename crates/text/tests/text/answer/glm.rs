//! `<arg_key>` and `<arg_value>`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{both, call, calls, check, cut, text, thought};

#[test]
fn glm_calls() {
    check(
        calls(ToolFormat::Glm45),
        &[
            ("2 < 3", &[text("2 < 3")]),
            (
                "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
                &[call("get_weather", "{\"city\":\"Paris\",\"days\":3}")],
            ),
            (
                "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
                &[call("get_weather", "{\"city\":\"Paris\"}")],
            ),
            (
                "Now:\n<tool_call>get_time\n</tool_call> Done.",
                &[text("Now:\n"), call("get_time", "{}"), text(" Done.")],
            ),
            (
                "<tool_call>get_time</tool_call>\n<tool_call>\nf</tool_call>",
                &[call("get_time", "{}"), call("f", "{}")],
            ),
            (
                "<tool_call>run<arg_key>code</arg_key><arg_value>\nx = \"}\";\n</tool_call>\\</arg_value></tool_call>",
                &[call("run", "{\"code\":\"\\nx = \\\"}\\\";\\n</tool_call>\\\\\"}")],
            ),
            (
                "<tool_call>run<arg_key>options</arg_key><arg_value>{\"a\": {\"b\": [true, \"</arg\"]}}</arg_value><arg_key>flag</arg_key><arg_value>false</arg_value><arg_key>ratio</arg_key><arg_value>1e3</arg_value></tool_call>",
                &[call(
                    "run",
                    "{\"options\":{\"a\": {\"b\": [true, \"</arg\"]}},\"flag\":false,\"ratio\":1e3}",
                )],
            ),
            (
                "<tool_call>get_weather<arg_key>city</arg_key><arg_value>75001</arg_value><arg_key>other</arg_key><arg_value>75001</arg_value></tool_call>",
                &[call("get_weather", "{\"city\":\"75001\",\"other\":75001}")],
            ),
            (
                "<tool_call>get_weather<arg_key>city</arg_key><arg_value>é 🦖</arg_value><arg_key>é\"</arg_key><arg_value>null</arg_value></tool_call>",
                &[call("get_weather", "{\"city\":\"é 🦖\",\"é\\\"\":null}")],
            ),
            // Cut.
            ("<tool_call>get_we", &[text("<tool_call>get_we")]),
            ("<tool_call>get_weather\n<arg_k", &[cut("get_weather", "")]),
            ("<tool_call>get_weather\n<arg_key>ci", &[cut("get_weather", "")]),
            (
                "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Par</arg",
                &[cut("get_weather", "{\"city\":\"Par</arg")],
            ),
            (
                "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>",
                &[cut("get_weather", "{\"city\":\"Paris\"")],
            ),
            // Broken.
            ("The <tool_call> tag", &[text("The <tool_call> tag")]),
            (
                "<tool_call>{\"name\": \"f\"}</tool_call>",
                &[text("<tool_call>{\"name\": \"f\"}</tool_call>")],
            ),
            ("<tool_call>f<b>x</b>", &[cut("f", ""), text("<b>x</b>")]),
            (
                "<tool_call>f\n<arg_value>x</arg_value>",
                &[cut("f", ""), text("<arg_value>x</arg_value>")],
            ),
        ],
    );
}

#[test]
fn glm_calls_after_reasoning() {
    check(
        both(ToolFormat::Glm45, ReasoningFormat::Qwen3),
        &[(
            "<think>Hm <arg_key></think>\n<tool_call>f\n</tool_call>",
            &[thought("Hm <arg_key>"), call("f", "{}")],
        )],
    );
}
