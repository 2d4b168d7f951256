//! vLLM's `prompt_logprobs`, in chats and in completions.

use serde_json::{Value, json};

use crate::{
    app::{App, CHAT, COMPLETIONS},
    script::{Server, id},
};

/// A model to which `A` is likeliest everywhere, and then `▁world`.
fn server() -> Server {
    Server::new(&[], &[(id("A"), -0.5), (id("▁world"), -1.25), (id("B"), -2.0)])
}

fn at(token: &str, logprob: f64, rank: u32, text: &str) -> (String, Value) {
    let told = json!({ "logprob": logprob, "rank": rank, "decoded_token": text });
    (id(token).to_string(), told)
}

fn place(tokens: impl IntoIterator<Item = (String, Value)>) -> Value {
    tokens.into_iter().collect::<serde_json::Map<_, _>>().into()
}

fn chat(more: Value) -> Value {
    let mut body =
        json!({ "messages": [{ "role": "user", "content": "Hello world" }], "max_tokens": 2 });
    body.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
    body
}

#[test]
fn each_token_of_a_prompt_is_told_with_the_likeliest_in_its_place() {
    let server = server();
    let own = at("▁world", -1.25, 2, " world");
    let (likeliest, third) = (at("A", -0.5, 1, "A"), at("B", -2.0, 3, "B"));
    for (count, expected) in [
        (0, place([own.clone()])),
        (1, place([own.clone(), likeliest.clone()])),
        (2, place([own.clone(), likeliest.clone()])),
        (3, place([own.clone(), likeliest.clone(), third.clone()])),
    ] {
        let expected = json!([null, expected]);
        let answer = server.post(CHAT, &chat(json!({ "prompt_logprobs": count, "n": 2 })));
        assert_eq!(answer["prompt_logprobs"], expected, "{count}");
        assert_eq!(answer["choices"].as_array().map(Vec::len), Some(2));
    }
    let answer = server.post(CHAT, &chat(json!({})));
    assert!(answer.get("prompt_logprobs").is_none(), "nobody else has them: {answer}");
}

#[test]
fn completions_tell_them_by_choice_and_beside_an_echo() {
    let server = server();
    let prompt = json!([[id("A"), id("C"), id("B")], [id("A")]]);
    let more = json!({ "prompt_logprobs": 3, "n": 2, "max_tokens": 1 });
    let answer = server.complete(prompt.clone(), more);
    let of_c = place([
        at("C", -9.0, 1000 + id("C"), "C"),
        at("A", -0.5, 1, "A"),
        at("▁world", -1.25, 2, " world"),
        at("B", -2.0, 3, "B"),
    ]);
    let of_b =
        place([at("B", -2.0, 3, "B"), at("A", -0.5, 1, "A"), at("▁world", -1.25, 2, " world")]);
    for (index, expected) in
        [json!([null, of_c, of_b]), json!([null])].iter().flat_map(|one| [one, one]).enumerate()
    {
        assert_eq!(answer["choices"][index]["prompt_logprobs"], *expected, "{index}");
    }
    // An echo has as many as it asks for itself.
    let echo = |more: Value| {
        let mut asked = json!({ "echo": true, "logprobs": 1, "max_tokens": 0 });
        asked.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        server.complete(prompt.clone(), asked)["choices"][0].clone()
    };
    let (alone, beside) = (echo(json!({})), echo(json!({ "prompt_logprobs": 3 })));
    assert_eq!(alone["logprobs"], beside["logprobs"]);
    assert_eq!(beside["prompt_logprobs"], answer["choices"][0]["prompt_logprobs"]);
    assert!(alone.get("prompt_logprobs").is_none());
}

#[test]
fn what_cannot_be_told_is_refused_by_name() {
    let app = App::new(sconce_server::ServerConfig::default());
    let completion = json!({ "prompt": "hi" });
    for (path, body) in [(CHAT, chat(json!({}))), (COMPLETIONS, completion)] {
        for (more, words) in [
            (json!({ "prompt_logprobs": -1 }), "is -1, but must be from 0 to 20"),
            (json!({ "prompt_logprobs": 21 }), "is 21, but must be from 0 to 20"),
            (json!({ "prompt_logprobs": 0, "stream": true }), "with stream: true"),
            (json!({ "prompt_logprobs": true }), "prompt_logprobs is true"),
        ] {
            let mut body = body.clone();
            body.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
            let (param, message) = app.refused(path, &body);
            assert_eq!(param, "prompt_logprobs", "{message}");
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        }
        let mut body = body.clone();
        body["prompt_logprobs"] = 1.0.into();
        let (status, answer) = app.post(path, &body);
        assert_eq!(status, 200, "{answer}");
    }
    let (param, message) =
        app.refused("/v1/responses", json!({ "input": "hi", "prompt_logprobs": 1 }));
    assert_eq!(param, "prompt_logprobs", "{message}");
}
