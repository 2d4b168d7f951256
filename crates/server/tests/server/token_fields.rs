//! Fields that speak of tokens: which may come, which are given, how many of a prompt's count.

use sconce_server::ServerConfig;
use serde_json::{Value, json};

use crate::{
    app::{App, CHAT, COMPLETIONS},
    writer::Writing,
};

/// What a model that writes `text` makes of it in so many tokens.
#[track_caller]
fn written(text: &str, max_tokens: usize, more: Value) -> String {
    let mut body = json!({ "prompt": "say", "max_tokens": max_tokens });
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    let (status, answer) = Writing::new(text).post(COMPLETIONS, &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["text"].as_str().expect("a text").to_owned()
}

#[test]
fn only_allowed_tokens_are_generated() {
    // The writer takes the first that is allowed where its own is not.
    let allowed = json!({ "allowed_token_ids": [b'h', b'o'] });
    assert_eq!(written("hello", 5, allowed), "hhhho");
    let within = json!({
        "allowed_token_ids": [b'b', b'c', 256],
        "structured_outputs": { "regex": "[ab]{3}" },
    });
    assert_eq!(written("aaa", 9, within), "bbb");
}

#[test]
fn bad_words_do_not_come() {
    let bad = |words: Value| json!({ "bad_words": words });
    let text = "an ant can";
    assert_eq!(written(text, 10, bad(json!([]))), text);
    assert_eq!(written(text, 10, bad(json!(["ant"]))), "an an\0 can");
    assert_eq!(written(text, 10, bad(json!(["can", "t"]))), "an an\0 ca\0");
    // As a text begins, and after a space: with it, where it is one token with the word.
    assert_eq!(written(text, 10, bad(json!([" an"]))), "a\0 a\0t ca\0");
    let both = json!({ "bad_words": ["b"], "structured_outputs": { "regex": "[ab]{3}" } });
    assert_eq!(written("abb", 9, both), "aaa");
}

#[test]
fn token_ids_are_given_where_they_are_asked_for() {
    let server = Writing::new("hé");
    let ids = json!([104, 195, 169, 256]);
    let chat =
        json!({ "messages": [{ "role": "user", "content": "x" }], "return_token_ids": true });
    let completion = json!({ "prompt": [[1, 2], [3]], "max_tokens": 9, "return_token_ids": true });
    let (_, answer) = server.post(CHAT, &chat);
    assert_eq!(answer["choices"][0]["token_ids"], ids);
    let prompt = answer["prompt_token_ids"].clone();
    let count = prompt.as_array().expect("a list").len();
    assert_eq!(answer["usage"]["prompt_tokens"], count);
    let (_, answer) = server.post(COMPLETIONS, &completion);
    for (index, of_prompt) in [json!([1, 2]), json!([3])].iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["token_ids"], &choice["prompt_token_ids"]), (&ids, of_prompt));
    }
    let streamed = |path, body: &Value, choice: u64| {
        let mut all = Vec::new();
        let mut prompts = Vec::new();
        for (_, chunk) in server.events(path, body) {
            let Some(at) = chunk["choices"].get(0).filter(|at| at["index"] == choice) else {
                continue;
            };
            all.extend(at["token_ids"].as_array().cloned().unwrap_or_default());
            prompts.extend(chunk.get("prompt_token_ids").or(at.get("prompt_token_ids")).cloned());
        }
        (Value::from(all), prompts)
    };
    assert_eq!(streamed(CHAT, &chat, 0), (ids.clone(), vec![prompt]));
    assert_eq!(streamed(COMPLETIONS, &completion, 1), (ids.clone(), vec![json!([3])]));
    // Nobody else has them.
    let (_, answer) = server.post(COMPLETIONS, &json!({ "prompt": "x" }));
    assert!(!answer.to_string().contains("token_ids"), "{answer}");
}

#[test]
fn log_probabilities_may_name_tokens_by_their_ids() {
    let server = Writing::new("hé");
    let more = json!({ "return_tokens_as_token_ids": true });
    let mut chat = json!({ "messages": [{ "role": "user", "content": "x" }], "logprobs": true });
    let mut completion = json!({ "prompt": "x", "logprobs": 1 });
    for body in [&mut chat, &mut completion] {
        body["return_tokens_as_token_ids"] = more["return_tokens_as_token_ids"].clone();
    }
    let names = json!(["token_id:104", "token_id:195", "token_id:169", "token_id:256"]);
    let (_, answer) = server.post(COMPLETIONS, &completion);
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], names);
    assert_eq!(logprobs["top_logprobs"][1], json!({ "token_id:195": -0.25 }));
    let (_, answer) = server.post(CHAT, &chat);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    let named: Vec<_> = content.iter().map(|at| at["token"].clone()).collect();
    assert_eq!((Value::from(named), &content[1]["bytes"]), (names, &json!([195])));
}

#[test]
fn a_prompts_last_tokens_are_kept() {
    let app = App::new(ServerConfig::default());
    let echoed = |prompt: Value, cut: i64| {
        let (status, answer) = app.post(
            COMPLETIONS,
            json!({ "prompt": prompt, "truncate_prompt_tokens": cut, "echo": true, "max_tokens": 0 }),
        );
        assert_eq!(status, 200, "{answer}");
        let text = answer["choices"][0]["text"].as_str().expect("a text").to_owned();
        (text, answer["usage"]["prompt_tokens"].as_u64().expect("a number"))
    };
    assert_eq!(echoed(json!("abcdef"), 3), ("def".to_owned(), 3));
    assert_eq!(echoed(json!("abcdef"), 128), ("abcdef".to_owned(), 6));
    assert_eq!(echoed(json!([97, 98, 99]), 1), ("c".to_owned(), 1));
    // More than a context, cut to what leaves room for the one token.
    assert_eq!(echoed(json!("x".repeat(300)), -1).1, 127);
    let chat = |content: String, more: Value| {
        let mut body = json!({
            "messages": [{ "role": "user", "content": content }],
            "max_tokens": 5, "ignore_eos": true,
        });
        body["truncate_prompt_tokens"] = more;
        app.post(CHAT, body)
    };
    let (status, answer) = chat("x".repeat(300), json!(-1));
    let usage = &answer["usage"];
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(123), &json!(5)));
    let (status, _) = chat("x".repeat(300), Value::Null);
    assert_eq!(status, 400, "a prompt is cut where that is asked for only");
    // Tokenizing has a bound all the same.
    assert_eq!(chat("x".repeat(600), json!(-1)).0, 400);
}

#[test]
fn the_best_of_several_are_the_likeliest() {
    let app = App::new(ServerConfig::default());
    let ask = |more: Value| {
        let mut body = json!({
            "prompt": ["a", "b"], "max_tokens": 6, "seed": 5, "ignore_eos": true, "logprobs": 0,
        });
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let (status, answer) = app.post(COMPLETIONS, body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let all = ask(json!({ "n": 6 }));
    let texts = |answer: &Value| -> Vec<Value> {
        let choices = answer["choices"].as_array().expect("a list").iter();
        choices.map(|choice| choice["text"].clone()).collect()
    };
    let mean = |choice: &Value| {
        let of_tokens = choice["logprobs"]["token_logprobs"].as_array().expect("a list");
        of_tokens.iter().map(|at| at.as_f64().expect("a number")).sum::<f64>()
    };
    let mut best = Vec::new();
    for of_prompt in all["choices"].as_array().expect("a list").chunks(6) {
        let mut ranked: Vec<_> = of_prompt.iter().collect();
        ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        best.extend(ranked[..2].iter().map(|choice| choice["text"].clone()));
    }
    let given = ask(json!({ "n": 2, "best_of": 6 }));
    assert_eq!(texts(&given), best);
    assert_ne!(texts(&ask(json!({ "n": 2 }))), best, "the first two are not the best already");
    assert_eq!(given["usage"]["completion_tokens"], 2 * 6 * 6, "what was generated counts");
    let (_, quiet) = app.post(
        COMPLETIONS,
        json!({ "prompt": "a", "max_tokens": 3, "best_of": 2, "ignore_eos": true }),
    );
    assert_eq!(quiet["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let app = App::new(ServerConfig::default());
    let long = "x".repeat(40);
    let cases = [
        (json!({ "allowed_token_ids": [] }), "allowed_token_ids", "an empty list"),
        (json!({ "allowed_token_ids": [1, 257] }), "allowed_token_ids", "[1] is 257, but must be"),
        (json!({ "allowed_token_ids": ["a"] }), "allowed_token_ids[0]", "a whole number"),
        (json!({ "bad_words": [""] }), "bad_words", "bad_words[0] is \"\", but must be"),
        (json!({ "bad_words": ["a", "  "] }), "bad_words", "bad_words[1]"),
        (json!({ "bad_words": [long] }), "bad_words", "at most 32 tokens"),
        (json!({ "bad_words": vec!["a"; 257] }), "bad_words", "257 entries, but at most 256"),
        (json!({ "bad_words": "a" }), "bad_words", "must be a list"),
        (json!({ "truncate_prompt_tokens": 0 }), "truncate_prompt_tokens", "from 1 to 128, or -1"),
        (json!({ "truncate_prompt_tokens": 129 }), "truncate_prompt_tokens", "is 129"),
        (json!({ "truncate_prompt_tokens": -2 }), "truncate_prompt_tokens", "is -2"),
        (json!({ "return_token_ids": 1 }), "return_token_ids", "a boolean"),
    ];
    for (path, own) in [
        (CHAT, json!({ "messages": [{ "role": "user", "content": "hi" }] })),
        (COMPLETIONS, json!({ "prompt": "hi" })),
    ] {
        for (more, field, words) in &cases {
            let mut body = own.clone();
            for (name, value) in more.as_object().expect("fields") {
                body[name] = value.clone();
            }
            let (param, message) = app.refused(path, &body);
            assert_eq!(param, *field, "{message}");
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        }
    }
    for (more, words) in [
        (json!({ "n": 3, "best_of": 2 }), "best_of is 2, but must be from n, which is 3, to 128"),
        (json!({ "best_of": 200 }), "to 128"),
        (json!({ "best_of": 2, "stream": true }), "with stream: true"),
    ] {
        let mut body = json!({ "prompt": "hi" });
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let (param, message) = app.refused(COMPLETIONS, &body);
        assert!(param == "best_of" && message.contains(words), "{message}");
    }
}
