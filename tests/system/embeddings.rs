//! Embeddings of all-MiniLM-L6-v2 with real weights, over HTTP, against transformers
//! (`tests/reference/embeddings.py`).

use std::{path::PathBuf, process::Command, sync::OnceLock};

use sconce::{
    ChatRequest, DeviceChoice, EmbeddingOptions, Error, Message, Options, SamplingParams, Sconce,
};
use serde_json::{Value, json};

use crate::{
    model,
    process::{Server, sconce},
};

/// The model's directory, fetched once.
pub(crate) fn dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("all-minilm-l6-v2");
        if !dir.is_dir() {
            let fetch = model::reference("fetch_minilm.py");
            let output = Command::new("python3").arg(fetch).arg(&dir).output();
            let output = output.expect("Python 3 runs");
            // Another test's process may have been quicker.
            assert!(
                output.status.success() || dir.is_dir(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        dir
    })
}

pub(crate) fn serve(args: &[&str]) -> Server {
    let mut command = sconce();
    command.arg("serve").arg(dir()).args(["--port", "0"]).args(args);
    Server::spawn(command)
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = server.send("POST", path, &body.to_string());
    (status, serde_json::from_str(&text).expect("JSON"))
}

fn embed(server: &Server, body: &Value) -> (Vec<Vec<f64>>, Value) {
    let (status, answer) = post(server, "/v1/embeddings", body);
    assert_eq!(status, 200, "{answer}");
    let data = answer["data"].as_array().expect("a list");
    let embedding = |(index, item): (usize, &Value)| {
        assert_eq!((&item["index"], &item["object"]), (&json!(index), &json!("embedding")));
        numbers(&item["embedding"])
    };
    (data.iter().enumerate().map(embedding).collect(), answer["usage"].clone())
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn embeddings_are_those_that_transformers_computes_alone_and_batched() {
    let cases = model::reference_json("embeddings.json");
    let cases = cases.as_array().expect("a list of cases");
    let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
    let tokens: Vec<&Value> = cases.iter().map(|case| &case["tokens"]).collect();
    let lens: Vec<usize> = tokens.iter().map(|ids| ids.as_array().expect("a list").len()).collect();
    assert!(cases.len() >= 11 && lens.contains(&256), "{lens:?}");
    for (args, least) in [
        (&[][..], 0.999_999),
        // A budget that cuts texts into chunks.
        (&["--max-num-batched-tokens", "48"], 0.999_999),
        (&["--dtype", "bfloat16"], 0.9999),
        (&["--quantization", "int8"], 0.999),
    ] {
        let server = serve(args);
        for word in ["BertModel", "384", "256 tokens", "/v1/embeddings"] {
            assert!(server.banner.contains(word), "no {word:?} in\n{}", server.banner);
        }
        let body = json!({ "input": texts, "truncate_prompt_tokens": -1 });
        let (batched, usage) = embed(&server, &body);
        let total: usize = lens.iter().sum();
        assert_eq!(usage, json!({ "prompt_tokens": total, "total_tokens": total }));
        for (case, batched) in cases.iter().zip(&batched) {
            let expected = numbers(&case["embedding"]);
            let close = cosine(batched, &expected);
            assert!(close > least, "{args:?}: {close}: {}", case["text"]);
            let length: f64 = batched.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
            let input = json!({ "input": case["text"], "truncate_prompt_tokens": -1 });
            let (alone, _) = embed(&server, &input);
            assert_eq!(&alone, std::slice::from_ref(batched), "{}", case["text"]);
        }
        let (of_tokens, _) = embed(&server, &json!({ "input": tokens }));
        assert_eq!(of_tokens, batched);
        if args.is_empty() {
            let generated = server.metric("vllm:generation_tokens_total");
            assert_eq!(generated, 0.0, "no token is billed that nobody asked for");
            assert_eq!(server.metric("vllm:prompt_tokens_total"), 3.0 * total as f64);
        }
    }
}

#[test]
fn what_an_encoder_cannot_do_is_said() {
    let server = serve(&[]);
    let (status, models) = server.send("GET", "/v1/models", "");
    assert_eq!(status, 200);
    assert!(models.contains("\"max_model_len\":256"), "{models}");
    let long = "word ".repeat(400);
    let (status, answer) = post(&server, "/v1/embeddings", &json!({ "input": ["a", long] }));
    let error = &answer["error"];
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    let body = json!({ "input": "a", "dimensions": 128 });
    let (status, answer) = post(&server, "/v1/embeddings", &body);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("dimensions")), "{answer}");
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    for (path, body) in [
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &json!({ "prompt": "hi" })),
        ("/v1/responses", &json!({ "input": "hi" })),
    ] {
        let (status, answer) = post(&server, path, body);
        assert_eq!(status, 400, "{answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.contains("makes embeddings"), "{message}");
    }
    let model = dir().to_str().expect("UTF-8");
    for (options, says) in [
        (Options { device: DeviceChoice::Cuda, ..Options::new(model) }, "make embeddings"),
        (Options { max_model_len: Some(257), ..Options::new(model) }, "256 tokens"),
    ] {
        let refused = Sconce::start(&options, &()).err().expect("it cannot start").to_string();
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn the_library_makes_embeddings_and_says_what_it_cannot_do() {
    let cases = model::reference_json("embeddings.json");
    let cases = cases.as_array().expect("a list of cases");
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().expect("text")).collect();
    let own = Sconce::start(&Options::new(dir().to_str().expect("UTF-8")), &());
    let own = own.expect("it starts");
    let cut = EmbeddingOptions { truncate: true, ..EmbeddingOptions::default() };
    let embeddings = own.blocking_embed(&texts, cut).expect("they are made");
    assert_eq!(embeddings.len(), cases.len());
    for (case, embedding) in cases.iter().zip(&embeddings) {
        let embedding: Vec<f64> = embedding.iter().map(|&x| f64::from(x)).collect();
        let close = cosine(&embedding, &numbers(&case["embedding"]));
        assert!(close > 0.999_999, "{close}: {}", case["text"]);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let awaited = runtime.block_on(own.embed(&texts, cut)).expect("they are made");
    assert_eq!(awaited, embeddings);
    let none: [&str; 0] = [];
    assert_eq!(own.blocking_embed(none, cut).expect("nothing is made"), Vec::<Vec<f32>>::new());
    let long = ["a".to_owned(), "word ".repeat(400)];
    let refused = own.blocking_embed(&long, EmbeddingOptions::default()).expect_err("too long");
    assert!(refused.to_string().contains("256 tokens"), "{refused}");
    let fewer = EmbeddingOptions { dimensions: Some(128), ..cut };
    let refused = own.blocking_embed(["a"], fewer).expect_err("it cannot be cut");
    let says = "dimensions is 128, but must be 384: this model's embeddings cannot be cut";
    assert_eq!(refused.to_string(), says);
    let all = EmbeddingOptions { dimensions: Some(384), ..cut };
    assert_eq!(own.blocking_embed(["a"], all).expect("it is made")[0].len(), 384);
    let params = SamplingParams::default;
    let request = ChatRequest::new([Message::user("hi")], params());
    for refused in [
        own.complete("hi", params()).err(),
        own.chat(&[("user", "hi")], params()).err(),
        own.answer(&request).err(),
    ] {
        assert!(matches!(refused, Some(Error::GeneratesNothing(_))), "{refused:?}");
    }
}
