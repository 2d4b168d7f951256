//! Harmony's channels.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Setting, both, call, check, cut, text, thought};

#[test]
fn harmony_messages() {
    let begun = Setting {
        prompt_end: "<|end|><|start|>assistant",
        ..both(ToolFormat::OpenAi, ReasoningFormat::OpenAiGptOss)
    };
    let cases: &[(&str, &[_])] = &[
        ("<|channel|>final<|message|>Yes { } <|.<|return|>", &[text("Yes { } <|.")]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            &[thought("Hm."), text("Yes.")],
        ),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>",
            &[thought("Hm."), call("get_weather", "{\"city\": \"Paris\"}")],
        ),
        (
            " to=functions.f<|channel|>commentary json<|message|>{\"a\": [{}]}<|call|>",
            &[call("f", "{\"a\": [{}]}")],
        ),
        (
            "<|channel|>commentary<|message|>I will.<|end|><|start|>assistant to=functions.f<|channel|>commentary<|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.g<|message|> {\"b\": 1}\n<|call|>",
            &[text("I will."), call("f", "{}"), call("g", "{\"b\": 1}")],
        ),
        ("<|channel|>commentary to=functions.f<|message|><|call|>", &[call("f", "{}")]),
        (
            r#"<|channel|>commentary to=functions.f<|message|>{"s": "}<|call|> ; \" \ud83d\ude00 é🦖"}<|call|>"#,
            &[call("f", r#"{"s": "}<|call|> ; \" \ud83d\ude00 é🦖"}"#)],
        ),
        ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", &[thought("1 + 1")]),
        (
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B<|end|>",
            &[thought("AB")],
        ),
        // Text in no channel.
        ("Hello", &[text("Hello")]),
        ("<|channel|>final<|message|>a<|end|>\nb", &[text("ab")]),
        // Cut.
        ("<|channel|>ana", &[]),
        ("<|channel|>analysis<|message|>Hm<|en", &[thought("Hm<|en")]),
        ("<|channel|>commentary to=functions.f<|message|>{\"a\": 1", &[cut("f", "{\"a\": 1")]),
        ("<|channel|>commentary to=functions.f<|message|>", &[cut("f", "")]),
        // Broken.
        (
            "<|channel|>commentary to=functions.f<|message|>{\"a\": b}<|call|>",
            &[cut("f", "{\"a\": "), text("b}")],
        ),
        (
            "<|channel|>commentary to=functions.f<|message|>{} and<|call|>",
            &[call("f", "{}"), text("and")],
        ),
        ("<|channel|>commentary to=functions.<|message|>x<|call|>", &[text("x")]),
    ];
    check(begun, cases);
    check(Setting { prompt_end: "", ..begun }, cases);
    let inside =
        Setting { prompt_end: "<|start|>assistant<|channel|>analysis<|message|>", ..begun };
    inside.check("Hm.<|end|>", &[thought("Hm.")]);
    let whole = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>";
    Setting { reasoning: None, ..begun }.check(whole, &[text("a"), call("f", "{}")]);
    Setting { tools: None, ..begun }.check(whole, &[thought("a"), text("{}")]);
}
