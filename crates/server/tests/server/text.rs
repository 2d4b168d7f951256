//! What tokens come to in answers: characters of several tokens, log-probabilities, the
//! echo of a prompt, and what ends an answer.

use serde_json::{Value, json};

use crate::script::{Server, byte, bytes, id};

#[test]
fn characters_of_byte_tokens_come_out_as_they_are_finished() {
    // Each of these bytes has one successor only.
    let sequence = [&[id("▁Hello")], &bytes("🦖é한")[..], &[id("▁world")]].concat();
    let server = Server::new(&sequence, &[]);
    let prompt = json!([id("▁Hello")]);
    let answer = server.complete(prompt.clone(), json!({}));
    assert_eq!(answer["choices"][0]["text"], "🦖é한 world");
    assert_eq!(answer["usage"]["completion_tokens"], 11);
    let chunks = server.stream(prompt, json!({ "max_tokens": 9, "logprobs": 0 }));
    let mut tokens = 0;
    let mut text = String::new();
    for chunk in &chunks {
        tokens += chunk["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
        text.push_str(chunk["text"].as_str().expect("a text"));
        let whole = [(9, "🦖é한"), (6, "🦖é"), (4, "🦖"), (0, "")];
        let expected = whole.iter().find(|(len, _)| tokens >= *len).expect("the last matches");
        assert_eq!(text, expected.1, "after {tokens} tokens");
    }
    // A token-id prompt may end inside a character.
    let prompt = [&[id("▁Hello")], &bytes("🦖")[..2]].concat();
    assert_eq!(server.complete(prompt, json!({}))["choices"][0]["text"], "🦖é한 world");
    let answer = server.complete(json!([id("▁Hello")]), json!({ "max_tokens": 2 }));
    assert_eq!(answer["choices"][0]["text"], "\u{fffd}\u{fffd}");
}

/// A model that writes `▁true` after `▁Hello`, with alternatives.
fn alternatives() -> Server {
    let top = [
        (id("▁true"), -0.5),
        (id("true"), -1.5),
        (byte(0xf0), -2.5),
        (byte(0x9f), -3.5),
        (id("A"), -4.5),
        (byte(b'A'), -5.5),
        (id("▁A"), -6.5),
    ];
    Server::new(&[id("▁Hello"), id("▁true"), byte(0xf0), byte(b'A'), id("B")], &top)
}

#[test]
fn log_probabilities_name_every_token() {
    let server = alternatives();
    let answer = server.complete("Hello", json!({ "logprobs": 7, "max_tokens": 4 }));
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(answer["choices"][0]["text"], " true\u{fffd}AB");
    let expected: Value = json!({
        " true": -0.5, "true": -1.5, "bytes:\\xf0": -2.5, "bytes:\\x9f": -3.5, "A": -4.5,
        format!("token_id:{}", byte(b'A')): -5.5, " A": -6.5,
    });
    assert_eq!(logprobs["top_logprobs"][0], expected);
    // The less likely token of one text is named as it is among the alternatives.
    let name = format!("token_id:{}", byte(b'A'));
    assert_eq!(logprobs["tokens"], json!([" true", "bytes:\\xf0", name, "B"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -2.5, -5.5, -9.0]));
    // The invalid byte is one character of the text, and comes with the next token.
    assert_eq!(logprobs["text_offset"], json!([0, 5, 5, 7]));
    let body = json!({
        "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 2, "temperature": 0,
        "logprobs": true, "top_logprobs": 3,
    });
    let answer = server.post("/v1/chat/completions", &body);
    let content = &answer["choices"][0]["logprobs"]["content"];
    assert_eq!(content[0]["token"], " true");
    assert_eq!(content[0]["bytes"], json!(b" true"));
    assert_eq!(content[0]["top_logprobs"][1]["token"], "true");
    assert_eq!(content[1]["bytes"], json!([0xf0]));
    assert_eq!(content[1]["token"], "\u{fffd}");
}

#[test]
fn tokens_are_shown_as_the_vocabulary_has_them() {
    let server = alternatives();
    let answer =
        server.post("/tokenize", &json!({ "prompt": "Hello true", "return_token_strs": true }));
    assert_eq!(answer["token_strs"], json!(["<s>", "▁Hello", "▁true"]));
}

#[test]
fn a_prompt_is_echoed_as_it_was_sent() {
    let server = alternatives();
    let echo = |more: Value| {
        let mut body = json!({ "echo": true, "max_tokens": 1, "logprobs": 0 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        body
    };
    let tokens = [id("<s>"), id("▁world"), id("▁Hello")];
    let cases = [
        (json!("world Hello"), "world Hello", json!(["<s>", " world", " Hello"]), [0, 0, 5, 11]),
        (json!(" world Hello"), " world Hello", json!(["<s>", " world", " Hello"]), [0, 0, 6, 12]),
        (json!(tokens), "<s> world Hello", json!(["<s>", " world", " Hello"]), [0, 3, 9, 15]),
    ];
    for (prompt, text, names, offsets) in cases {
        let choice = server.complete(prompt.clone(), echo(json!({})))["choices"][0].take();
        assert_eq!(choice["text"], format!("{text} true"));
        let names = [names.as_array().expect("names"), &[json!(" true")][..]].concat();
        assert_eq!(choice["logprobs"]["tokens"], json!(names));
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets));
        let scored = server.complete(prompt.clone(), echo(json!({ "max_tokens": 0 })));
        assert_eq!(scored["choices"][0]["text"], text);
        assert_eq!(scored["choices"][0]["logprobs"]["text_offset"], json!(offsets[..3]));
        let chunks = server.stream(prompt.clone(), echo(json!({ "n": 1 })));
        let texts = chunks.iter().filter_map(|chunk| chunk["text"].as_str());
        assert_eq!(texts.collect::<String>(), format!("{text} true"));
        let streamed =
            chunks.iter().filter_map(|chunk| chunk["logprobs"]["text_offset"].as_array());
        assert_eq!(json!(streamed.flatten().collect::<Vec<_>>()), json!(offsets));
    }
    // A name of a special token in the text is a token; the text is as it was sent.
    let choice = server.complete("<s>world", echo(json!({})))["choices"][0].take();
    assert!(choice["text"].as_str().expect("a text").starts_with("<s>world"), "{choice}");
    // A character that the prompt ends within is the completion's, and is shown once.
    let server = Server::new(&[&bytes("🦖")[..], &[id("B")]].concat(), &[]);
    let prompt = [&[id("A")], &bytes("🦖")[..2]].concat();
    let choice = server.complete(prompt.clone(), json!({ "echo": true }))["choices"][0].take();
    assert_eq!(choice["text"], "A🦖B");
    let choice = server.complete(prompt, json!({ "echo": true, "max_tokens": 0 }));
    assert_eq!(choice["choices"][0]["text"], "A\u{fffd}\u{fffd}");
}

#[test]
fn what_ends_an_answer_is_no_part_of_it() {
    let server = Server::new(&[id("▁Hello"), id("A"), id("B"), id("C"), id("</s>")], &[]);
    let ask = |more: Value| {
        let answer = server.complete("Hello", more);
        let choice = &answer["choices"][0];
        let tokens = answer["usage"]["completion_tokens"].as_u64().expect("a count");
        (choice["text"].as_str().expect("a text").to_owned(), choice["stop_reason"].clone(), tokens)
    };
    let of = |text: &str, reason: Value, tokens: u64| (text.to_owned(), reason, tokens);
    let b = id("B");
    assert_eq!(ask(json!({ "stop_token_ids": [b] })), of("A", json!(b), 2));
    let with = json!({ "stop_token_ids": [b], "include_stop_str_in_output": true });
    assert_eq!(ask(with), of("AB", json!(b), 2));
    assert_eq!(ask(json!({})), of("ABC", Value::Null, 4));
    assert_eq!(ask(json!({ "skip_special_tokens": false })), of("ABC", Value::Null, 4));
    let with = json!({ "skip_special_tokens": false, "include_stop_str_in_output": true });
    assert_eq!(ask(with), of("ABC</s>", Value::Null, 4));
    // Shown where it does not end the answer.
    let on = json!({ "skip_special_tokens": false, "ignore_eos": true, "max_tokens": 4 });
    assert_eq!(ask(on), of("ABC</s>", Value::Null, 4));
}

#[test]
fn stop_strings_wait_for_min_tokens_and_see_special_tokens() {
    let sequence = [id("▁Hello"), id("A"), id("<|end|>"), id("B"), id("C")];
    let server = Server::new(&sequence, &[]);
    let ask = |more: Value| {
        let choice = server.complete("Hello", more)["choices"][0].take();
        (choice["text"].as_str().expect("a text").to_owned(), choice["stop_reason"].clone())
    };
    let of = |text: &str, reason: &str| (text.to_owned(), json!(reason));
    assert_eq!(ask(json!({ "stop": "A" })), of("", "A"));
    assert_eq!(ask(json!({ "stop": ["A", "C"], "min_tokens": 3 })), of("AB", "C"));
    assert_eq!(ask(json!({ "stop": "A", "min_tokens": 3 })), ("ABC".to_owned(), Value::Null));
    assert_eq!(ask(json!({ "stop": "<|end|>" })), of("A", "<|end|>"));
    assert_eq!(ask(json!({ "stop": "A<|end|>B" })), of("", "A<|end|>B"));
    assert_eq!(ask(json!({ "stop": "AB" })), of("", "AB"));
    let shown = json!({ "stop": "<|end|>", "skip_special_tokens": false });
    assert_eq!(ask(shown), of("A", "<|end|>"));
    let shown = json!({ "stop": "AB", "skip_special_tokens": false });
    assert_eq!(ask(shown), ("A<|end|>BC".to_owned(), Value::Null));
}

/// `usage` is what the engine has metered, not a count of its own.
#[test]
fn usage_counts_what_the_engine_metered() {
    let server = Server::new(&[id("▁Hello"), id("A"), id("B"), id("C")], &[]);
    for more in [json!({ "stop": "B" }), json!({ "stop_token_ids": [id("B")] })] {
        let usage = server.complete("Hello", more)["usage"].take();
        assert_eq!(usage["completion_tokens"], 2);
        assert_eq!(usage["total_tokens"], 4);
    }
}
