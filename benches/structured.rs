//! Decoding of 32 answers under a JSON schema beside as many that nothing bounds, in turns;
//! and what compilation and masks take with the model's vocabulary.
//!
//! `cargo bench --bench structured [-- MODEL]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce::{EngineRequest, Options, RequestEvent, SamplingParams, Sconce};
use sconce_engine::TokenConstraint;
use sconce_grammar::{Constraint, Grammar, GrammarConfig, Grammars, Source};
use sconce_types::{TenantId, TokenId};
use serde_json::{Value, json};

const STREAMS: usize = 32;
const TOKENS: u32 = 64;
const ROUNDS: usize = 7;
const SCHEMAS: &str = include_str!("../crates/grammar/tests/grammar/schemas.json");

struct Constrained(Constraint);

impl TokenConstraint for Constrained {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        self.0.fill_mask(words)
    }

    fn accept(&mut self, token: TokenId) {
        self.0.accept(token);
    }
}

#[expect(clippy::print_stdout, reason = "a bench prints")]
fn main() {
    let model = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = model.unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let options = Options { max_num_seqs: STREAMS, ..Options::new(model) };
    let sconce = Sconce::start(&options, &()).expect("the model starts");
    let summary = sconce.summary();
    println!("# {} on {}", summary.model_name, summary.device);
    let vocab_size = sconce.engine().limits().vocab_size;
    let grammars = Grammars::new(Arc::clone(sconce.text()), vocab_size, GrammarConfig::default());
    let began = Instant::now();
    compile(&grammars, &Source::JsonObject);
    println!("the first grammar, with the vocabulary: {:.1} ms", ms(began.elapsed()));
    measure_masks(&grammars, vocab_size, &sconce.text().eos_token_ids());
    // It cannot end within the tokens that are generated.
    let person = json!({
        "type": "object", "required": ["name", "age", "tags"], "additionalProperties": false,
        "properties": {
            "name": { "type": "string" }, "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "enum": ["red", "green", "blue"] } },
        },
    });
    let schema = json!({ "type": "array", "items": person, "minItems": 1000 });
    let grammar = compile(&grammars, &Source::JsonSchema(schema));
    println!("# {STREAMS} answers of {TOKENS} tokens; {ROUNDS} rounds in turns");
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let free = decode(&sconce, None);
        let bound = decode(&sconce, Some(&grammar));
        let tokens = STREAMS as f64 * f64::from(TOKENS);
        let [free, bound] = [free, bound].map(|time| tokens / time.as_secs_f64());
        // The first warms up.
        if round > 0 {
            println!("free {free:.0} tokens/s, under the schema {bound:.0} tokens/s");
            ratios.push(bound / free);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.3}", ratios[ratios.len() / 2]);
}

fn compile(grammars: &Grammars, source: &Source) -> Grammar {
    grammars.compile(TenantId(0), source).expect("it compiles")
}

/// The time that the answers take from the first's submission to the last's end.
fn decode(sconce: &Sconce, grammar: Option<&Grammar>) -> Duration {
    let constraints: Vec<_> = (0..STREAMS).map(|_| grammar.map(Grammar::constraint)).collect();
    let began = Instant::now();
    let streams: Vec<_> = constraints
        .into_iter()
        .enumerate()
        .map(|(i, constraint)| {
            let params =
                SamplingParams { max_tokens: TOKENS, seed: i as u64, ..SamplingParams::default() };
            let prompt = (0..8).map(|token| 1000 + token + i as u32 * 8).collect();
            let request = EngineRequest::new(prompt, params);
            let engine = sconce.engine();
            let taken = match constraint {
                Some(constraint) => {
                    engine.submit_constrained(request, None, Box::new(Constrained(constraint)))
                }
                None => engine.submit(request),
            };
            taken.expect("it is taken")
        })
        .collect();
    for mut stream in streams {
        let mut tokens = 0;
        while let Some(event) = stream.blocking_next() {
            assert!(matches!(event, RequestEvent::Token(_)), "{event:?}");
            tokens += 1;
        }
        assert_eq!(tokens, TOKENS);
    }
    began.elapsed()
}

/// Compiles schemas and draws answers through their masks.
#[expect(clippy::print_stdout, reason = "a bench prints")]
fn measure_masks(grammars: &Grammars, vocab_size: usize, ends: &[TokenId]) {
    const MOST_TOKENS: usize = 100;
    let schemas: Vec<Value> = serde_json::from_str(SCHEMAS).expect("a list of schemas");
    let (mut compilations, mut masks, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    let mut rng = StdRng::seed_from_u64(1);
    let mut words = vec![0; vocab_size.div_ceil(32)];
    for schema in schemas {
        let source = Source::JsonSchema(schema);
        let began = Instant::now();
        let grammar = compile(grammars, &source);
        compilations.push(began.elapsed());
        let began = Instant::now();
        let mut constraint = grammar.constraint();
        copies.push(began.elapsed());
        constraint.fill_mask(&mut words);
        for _ in 0..MOST_TOKENS {
            let allowed: Vec<u32> = (0..vocab_size as u32)
                .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
                .collect();
            let token = allowed[rng.random_range(0..allowed.len())];
            if ends.contains(&token) {
                break;
            }
            let began = Instant::now();
            constraint.accept(token);
            while !constraint.fill_mask(&mut words) {}
            masks.push(began.elapsed());
        }
    }
    for (name, times) in [("compilation", compilations), ("copy", copies), ("mask", masks)] {
        let sum: Duration = times.iter().sum();
        let worst = times.iter().max().copied().unwrap_or_default();
        let mean = sum / times.len() as u32;
        println!("{name}: mean {:.3} ms, worst {:.3} ms of {}", ms(mean), ms(worst), times.len());
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
