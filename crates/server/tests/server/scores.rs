//! `/v1/score` and `/v1/rerank`, over a model whose embeddings tell what it was given.

use sconce_server::ServerConfig;
use serde_json::{Value, json};

use crate::{
    app::App,
    embeddings::{MAX_TOKENS, app},
};

const SCORE: &str = "/v1/score";
const RERANK: &str = "/v1/rerank";

/// The cosine of the model's embeddings of two texts: `[length, sum, first, last]`.
fn cosine(a: &str, b: &str) -> f64 {
    let embedding = |text: &str| {
        let bytes: Vec<f64> = text.bytes().map(f64::from).collect();
        [bytes.len() as f64, bytes.iter().sum(), bytes[0], bytes[bytes.len() - 1]]
    };
    let (a, b) = (embedding(a), embedding(b));
    let product = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

fn assert_close(got: &Value, expected: f64) {
    let got = got.as_f64().expect("a number");
    assert!((got - expected).abs() < 1e-9, "{got} beside {expected}");
}

#[test]
fn one_text_or_each_of_several_is_scored() {
    let app = app(None);
    for (first, second, pairs) in [
        (json!("ab"), json!("xyz"), vec![("ab", "xyz")]),
        (json!("ab"), json!(["xyz", "ab"]), vec![("ab", "xyz"), ("ab", "ab")]),
        (json!(["ab"]), json!(["q", "r"]), vec![("ab", "q"), ("ab", "r")]),
        (json!(["ab", "!"]), json!(["q", "zz"]), vec![("ab", "q"), ("!", "zz")]),
    ] {
        let body = json!({ "model": "telling", "text_1": first, "text_2": second });
        for path in [SCORE, "/score"] {
            let (status, answer) = app.post(path, &body);
            assert_eq!((status, &answer["object"]), (200, &json!("list")), "{answer}");
            let data = answer["data"].as_array().expect("a list");
            assert_eq!(data.len(), pairs.len());
            for (index, (item, (a, b))) in data.iter().zip(&pairs).enumerate() {
                assert_eq!((&item["index"], &item["object"]), (&json!(index), &json!("score")));
                assert_close(&item["score"], cosine(a, b));
            }
        }
    }
    let (_, answer) = app.post(SCORE, json!({ "text_1": "ab", "text_2": ["q", "rst"] }));
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 6, "total_tokens": 6 }));
}

#[test]
fn documents_come_in_the_order_of_their_likeness() {
    let app = app(None);
    let documents = ["!", "ab", "zzzz", "ab", "b"];
    let ask = |more: Value| {
        let mut body = json!({ "query": "ab", "documents": documents });
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let (status, answer) = app.post(RERANK, body);
        assert_eq!(status, 200, "{answer}");
        answer["results"].as_array().expect("a list").clone()
    };
    let all = ask(json!({}));
    assert_eq!(all.len(), documents.len());
    // Of equals the first.
    assert_eq!((&all[0]["index"], &all[1]["index"]), (&json!(1), &json!(3)));
    for (at, item) in all.iter().enumerate() {
        let index = item["index"].as_u64().expect("a number") as usize;
        assert_eq!(item["document"]["text"], documents[index]);
        assert_close(&item["relevance_score"], cosine("ab", documents[index]));
        let before = all[at.saturating_sub(1)]["relevance_score"].as_f64();
        assert!(before >= item["relevance_score"].as_f64());
    }
    assert_eq!(ask(json!({ "top_n": 2 })), all[..2]);
    assert_eq!(ask(json!({ "top_n": 0 })), all);
    assert_eq!(ask(json!({ "top_n": 50 })), all);
    let bare = ask(json!({ "return_documents": false }));
    assert!(bare.iter().all(|item| item.get("document").is_none()));
    for path in ["/rerank", "/v2/rerank"] {
        assert_eq!(app.post(path, json!({ "query": "a", "documents": ["b"] })).0, 200);
    }
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let app = app(None);
    let long = "x".repeat(MAX_TOKENS + 1);
    for (path, body, field) in [
        (SCORE, json!({ "text_2": "a" }), "text_1"),
        (SCORE, json!({ "text_1": ["a", "b"], "text_2": ["a"] }), "text_1"),
        (SCORE, json!({ "text_1": ["a", "b"], "text_2": "a" }), "text_1"),
        (SCORE, json!({ "text_1": [], "text_2": "a" }), "text_1"),
        (SCORE, json!({ "text_1": "a", "text_2": [] }), "text_2"),
        (SCORE, json!({ "text_1": "a", "text_2": ["b", long] }), "text_2"),
        (SCORE, json!({ "text_1": 5, "text_2": "a" }), "text_1"),
        (
            SCORE,
            json!({ "text_1": "a", "text_2": "a", "softmax_normalize": true }),
            "softmax_normalize",
        ),
        (RERANK, json!({ "documents": ["a"] }), "query"),
        (RERANK, json!({ "query": "", "documents": ["a"] }), "query"),
        (RERANK, json!({ "query": "a", "documents": [] }), "documents"),
        (RERANK, json!({ "query": "a", "documents": [{ "text": "b" }] }), "documents[0]"),
        (RERANK, json!({ "query": "a", "documents": ["b"], "top_n": -1 }), "top_n"),
        (
            RERANK,
            json!({ "query": "a", "documents": ["b"], "truncate_prompt_tokens": 0 }),
            "truncate_prompt_tokens",
        ),
        (RERANK, json!({ "query": "a", "documents": ["b"], "topn": 1 }), "topn"),
    ] {
        let (param, message) = app.refused(path, &body);
        assert_eq!(param, field, "{message}");
    }
    let cut = json!({ "text_1": "a", "text_2": long, "truncate_prompt_tokens": -1 });
    assert_eq!(app.post(SCORE, cut).0, 200);
    // A model that generates.
    let other = App::new(ServerConfig::default());
    let (param, message) = other.refused(SCORE, json!({ "text_1": "a", "text_2": "b" }));
    assert!(param == "model" && message.contains("makes no embeddings"), "{message}");
}
