//! Masks token by token: ends, special tokens, padding, and states of their own.

use sconce_grammar::{GrammarError, Source};
use sconce_text::TextModel;
use sconce_types::{TenantId, TokenId};
use serde_json::json;

use crate::models::{Model, TENANT, rng};

fn schema(schema: serde_json::Value) -> Source {
    Source::JsonSchema(schema)
}

#[test]
fn special_tokens_are_never_allowed_where_their_names_are_text() {
    let model = Model::bpe();
    let source = schema(json!({ "const": "a<|eot_id|>b" }));
    let whole = "\"a<|eot_id|>b\"";
    assert!(model.accepts(&source, whole));
    let with_token = [34, 97, 401, 98, 34];
    assert!(!model.accepts_tokens(&mut model.constraint(&source), &with_token));
    // In any string the name is text too, and the token is not allowed.
    let mut constraint = model.constraint(&schema(json!({ "type": "string" })));
    constraint_accepts(&model, &mut constraint, "\"x<|");
    let allowed = model.allowed(&mut constraint);
    assert!(allowed.len() > 100);
    assert!(allowed.iter().all(|&token| token < 400), "{allowed:?}");
    // A grammar may name them.
    let named = Source::Lark("start: \"a\" <|tool|>\n".to_owned());
    assert!(model.accepts_tokens(&mut model.constraint(&named), &[97, 402]));
}

fn constraint_accepts(model: &Model, constraint: &mut sconce_grammar::Constraint, text: &str) {
    for byte in text.bytes() {
        let token = (0..256_u32)
            .find(|&id| model.text.token_text(id).bytes == [byte])
            .expect("every byte has a token");
        assert!(model.allowed(constraint).contains(&token), "{text:?}");
        constraint.accept(token);
    }
}

#[test]
fn every_end_token_is_allowed_exactly_where_the_answer_may_end() {
    let model = Model::bpe();
    let mut constraint = model.constraint(&schema(json!({ "enum": [1, 12] })));
    let ends =
        |allowed: &[TokenId]| allowed.iter().filter(|&&t| t >= 400).copied().collect::<Vec<_>>();
    let first = model.allowed(&mut constraint);
    assert!(ends(&first).is_empty());
    constraint_accepts(&model, &mut constraint, "1");
    let second = model.allowed(&mut constraint);
    assert_eq!(ends(&second), [400, 401]);
    assert!(second.len() == 3, "2 may follow: {second:?}");
    constraint_accepts(&model, &mut constraint, "2");
    assert_eq!(model.allowed(&mut constraint), [400, 401]);
    constraint.accept(400);
    assert_eq!(constraint.failure(), None);
}

#[test]
fn tokens_without_text_and_places_beyond_the_tokenizer_are_never_allowed() {
    let model = Model::bpe();
    let mut constraint = model.constraint(&Source::Regex("(.|\\n)*".to_owned()));
    let allowed = model.allowed(&mut constraint);
    assert!(allowed.iter().all(|&token| token < 402), "{allowed:?}");
    // A row's mask may have fewer words than the vocabulary, or more.
    for len in [1, 40] {
        let mut words = vec![0; len];
        assert!(constraint.fill_mask(&mut words));
        assert_ne!(words[0], 0);
    }
}

#[test]
fn constraints_of_one_grammar_know_nothing_of_each_other() {
    let model = Model::bytes();
    let source = schema(json!({ "enum": ["left", "right"] }));
    let grammar = model.compile(&source).expect("it compiles");
    let (mut one, mut other) = (grammar.constraint(), grammar.constraint());
    constraint_accepts(&model, &mut one, "\"left\"");
    constraint_accepts(&model, &mut other, "\"right\"");
    assert_eq!(model.allowed(&mut one), [256]);
    assert_eq!(model.allowed(&mut other), [256]);
    let mut rng = rng(3);
    assert!(model.draw(&mut grammar.constraint(), &mut rng, 100).is_some());
}

#[test]
fn a_grammar_needs_an_end_token() {
    let text = std::sync::Arc::new(TextModel::bytes());
    let grammars =
        sconce_grammar::Grammars::new(text, 256, sconce_grammar::GrammarConfig::default());
    let error = grammars.compile(TENANT, &Source::JsonObject).expect_err("256 is its end");
    assert_eq!(error, GrammarError::NoEndToken);
}

#[test]
fn grammars_are_kept_by_tenant_within_bounds() {
    let text = std::sync::Arc::new(TextModel::bytes());
    let config = sconce_grammar::GrammarConfig {
        max_cached: 2,
        max_source_bytes: 100,
        compile_time: std::time::Duration::from_secs(60),
        ..sconce_grammar::GrammarConfig::default()
    };
    let grammars = sconce_grammar::Grammars::new(text, 300, config);
    let source = |name: &str| Source::Regex(name.to_owned());
    let compile = |tenant: u32, name: &str| {
        grammars.compile(TenantId(tenant), &source(name)).expect("it compiles")
    };
    let kept = |tenant: u32, name: &str| grammars.kept(TenantId(tenant), &source(name));
    assert!(kept(0, "a").is_ok_and(|kept| kept.is_none()));
    let first = compile(0, "a");
    assert!(kept(0, "a").is_ok_and(|kept| kept.is_some_and(|kept| kept.is_same(&first))));
    assert!(kept(1, "a").is_ok_and(|kept| kept.is_none()));
    assert!(compile(0, "a").is_same(&first));
    assert!(!compile(1, "a").is_same(&first), "another tenant's is another");
    assert!(compile(0, "a").is_same(&first), "two are kept");
    compile(0, "b");
    assert!(kept(1, "a").is_ok_and(|kept| kept.is_some()), "a tenant makes room for its own");
    let again = compile(0, "a");
    assert!(!again.is_same(&first), "a third takes the room of its tenant's oldest");
    compile(2, "a");
    assert!(kept(1, "a").is_ok_and(|kept| kept.is_none()), "of equals the oldest goes");
    assert!(compile(0, "a").is_same(&again));
    assert!(grammars.compile(TenantId(0), &source("(")).is_err());
    assert!(kept(0, "(").is_err(), "what is wrong is known to be");
    let long = grammars.compile(TenantId(0), &source(&"x".repeat(200)));
    assert_eq!(long.expect_err("it is long"), GrammarError::TooLong { bytes: 206, limit: 100 });
}

#[test]
fn one_source_is_compiled_once_for_all_who_want_it_at_once() {
    let model = Model::bytes();
    let source = schema(json!({ "type": "object", "properties": { "a": { "type": "string" } } }));
    let grammars: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| model.compile(&source).expect("it compiles"))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(grammars.iter().all(|grammar| grammar.is_same(&grammars[0])));
}
