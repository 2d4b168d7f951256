//! `<|tool_call>call:NAME{…}`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Setting, both, call, check, cut, text, thought};

#[test]
fn gemma_calls() {
    let setting = both(ToolFormat::Gemma4, ReasoningFormat::Gemma4);
    check(
        setting,
        &[
            ("{a:1} <|tool", &[text("{a:1} <|tool")]),
            (
                "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>,days:3}<tool_call|>",
                &[call("get_weather", "{\"city\":\"Paris\",\"days\":3}")],
            ),
            (
                "I do.<|tool_call>call:f{}<tool_call|><|tool_call>call:g{a:true}<tool_call|> Done.",
                &[text("I do."), call("f", "{}"), call("g", "{\"a\":true}"), text(" Done.")],
            ),
            ("<|tool_call>call:f{}<tool_call|><|tool_response>", &[call("f", "{}")]),
            (
                "<|tool_call>call:f{a:{b:[1,-2.5,<|\"|>x<|\"|>,{c:null}],<|\"|>d e<|\"|>:{}},e:[]}<tool_call|>",
                &[call("f", "{\"a\":{\"b\":[1,-2.5,\"x\",{\"c\":null}],\"d e\":{}},\"e\":[]}")],
            ),
            (
                "<|tool_call>call:f{s:<|\"|>a \"b\" } ] , ; \\n <tool_call|> <| <|\"\n é🦖<|\"|>}<tool_call|>",
                &[call("f", "{\"s\":\"a \\\"b\\\" } ] , ; \\\\n <tool_call|> <| <|\\\"\\n é🦖\"}")],
            ),
            (
                "<|tool_call>call:f{ a : 1 , b : [ 2 , 3 ] }<tool_call|>",
                &[call("f", "{\"a\":1,\"b\":[2,3]}")],
            ),
            (
                "<|tool_call>call:f{unit:celsius,s:\"a\\\"b\"}<tool_call|>",
                &[call("f", "{\"unit\":\"celsius\",\"s\":\"a\\\"b\"}")],
            ),
            ("<|channel>thought\nHm.\n<channel|>Yes.", &[thought("Hm."), text("Yes.")]),
            ("<|channel>thought\n<channel|>Yes.", &[text("Yes.")]),
            (
                "<|channel>thought\nHm.\n<channel|><|tool_call>call:f{}<tool_call|>",
                &[thought("Hm."), call("f", "{}")],
            ),
            // Cut.
            ("<|tool_call>call:ge", &[text("<|tool_call>call:ge")]),
            ("<|tool_call>call:f{cit", &[cut("f", "")]),
            ("<|tool_call>call:f{s:<|\"|>Par<|", &[cut("f", "{\"s\":\"Par<|")]),
            ("<|tool_call>call:f{a:12", &[cut("f", "{\"a\":12")]),
            ("<|channel>thought\nHm.", &[thought("Hm.")]),
            // Broken.
            ("<|tool_call>call f", &[text("<|tool_call>call f")]),
            ("<|tool_call>call:{}", &[text("<|tool_call>call:{}")]),
            (
                "<|tool_call>call:f{a:1]}<tool_call|>",
                &[cut("f", "{\"a\":"), text("1]}<tool_call|>")],
            ),
        ],
    );
    let inside = Setting { prompt_end: "<|turn>model\n<|channel>thought\n", ..setting };
    inside.check("Hm.\n<channel|>Yes.", &[thought("Hm."), text("Yes.")]);
    let outside = Setting { prompt_end: "<|channel>thought\n<channel|>", ..setting };
    outside.check("Yes.", &[text("Yes.")]);
}
