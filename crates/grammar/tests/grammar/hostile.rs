//! Sources made to cost much: each ends in an error of its own, or works within bounds. What
//! is measured is memory and success, never time.

use std::fmt::Write as _;

use rand::RngExt as _;
use sconce_grammar::{GrammarConfig, GrammarError, Source};
use serde_json::{Map, Value, json};

use crate::models::{Model, rng};

/// Compiles and draws a few tokens. Neither may panic, overflow a stack or fail otherwise than
/// with an error of this request.
fn survives(model: &Model, source: &Source) {
    let grammar = match model.compile(source) {
        Ok(grammar) => grammar,
        Err(error) => {
            assert_ne!(error, GrammarError::Bug, "{error}");
            return;
        }
    };
    let mut rng = rng(1);
    let mut constraint = grammar.constraint();
    for _ in 0..40 {
        let allowed = model.allowed(&mut constraint);
        if allowed.is_empty() {
            let failure = constraint.failure().expect("nothing is allowed");
            assert!(matches!(failure, GrammarError::TooComplex(_)), "{failure}");
            return;
        }
        if allowed.iter().all(|&token| model.is_end(token)) {
            return;
        }
        let texts: Vec<_> = allowed.into_iter().filter(|&token| !model.is_end(token)).collect();
        constraint.accept(texts[rng.random_range(0..texts.len())]);
    }
}

/// A chain of definitions, each a reference to the next.
fn chain(len: usize, link: impl Fn(String) -> Value) -> Value {
    let mut defs = Map::new();
    for i in 0..len {
        defs.insert(format!("d{i}"), link(format!("#/$defs/d{}", i + 1)));
    }
    defs.insert(format!("d{len}"), json!({ "type": "integer" }));
    json!({ "$defs": defs, "$ref": "#/$defs/d0" })
}

#[test]
fn schemas_that_refer_on_and_on_do_not_overflow_the_stack() {
    let model = Model::bytes();
    survives(&model, &Source::JsonSchema(chain(1500, |next| json!({ "$ref": next }))));
    survives(
        &model,
        &Source::JsonSchema(chain(1000, |next| json!({ "allOf": [{ "$ref": next }] }))),
    );
    survives(&model, &Source::JsonSchema(chain(1000, |next| json!({ "items": { "$ref": next } }))));
    let both = |next: String| json!({ "anyOf": [{ "$ref": next }, { "items": { "$ref": next } }] });
    survives(&model, &Source::JsonSchema(chain(600, both)));
}

#[test]
fn schemas_that_multiply_are_bounded() {
    let model = Model::bytes();
    let mut product = json!({ "type": "string" });
    for i in 0..14 {
        let option = |side: &str| json!({ "properties": { format!("{side}{i}"): product } });
        product = json!({ "allOf": [{ "anyOf": [option("a"), option("b")] }, { "anyOf": [option("c"), option("d")] }] });
        if product.to_string().len() > 30_000 {
            break;
        }
    }
    survives(&model, &Source::JsonSchema(product));
    for schema in [
        json!({ "type": "array", "items": { "type": "integer" }, "minItems": 100_000, "maxItems": 1_000_000_000 }),
        json!({ "type": "string", "minLength": 1_000_000_000 }),
        json!({ "type": "string", "maxLength": u64::MAX }),
        json!({ "type": "string", "pattern": "(.*a){30}" }),
        json!({ "type": "string", "pattern": "(a|aa)*{9}{9}{9}{9}" }),
        json!({ "type": "integer", "multipleOf": 1_000_003 }),
        json!({ "type": "integer", "multipleOf": 9_999 }),
        json!({ "type": "number", "multipleOf": 1e-300 }),
        json!({ "minimum": -1e308, "maximum": 1e308, "multipleOf": 7.77 }),
        json!({ "patternProperties": { ".*a.*": {}, ".*b.*": {}, "(x|y)*": {} } }),
    ] {
        survives(&model, &Source::JsonSchema(schema));
    }
    let many: Vec<Value> = (0..2000).map(|i| json!(format!("value {i}"))).collect();
    survives(&model, &Source::JsonSchema(json!({ "enum": many })));
    let properties: Map<String, Value> =
        (0..1000).map(|i| (format!("key{i}"), json!({ "type": "string" }))).collect();
    survives(&model, &Source::JsonSchema(json!({ "properties": properties })));
}

#[test]
fn regular_expressions_and_grammars_that_explode_are_bounded() {
    let model = Model::bytes();
    for regex in [
        r"(\w+\s*){1,500}",
        "(.*a){30}",
        "((a{0,100}){0,100}){0,100}",
        "(a|b|ab)*c{1000000}",
        r"[\s\S]{1,100000}x",
        "(x+x+)+y",
        r"(?i)(\p{L}{1,9}\s?){1,99}",
    ] {
        survives(&model, &Source::Regex(regex.to_owned()));
    }
    let nested = |depth: usize| format!("start: {}\"a\"{}\n", "(".repeat(depth), ")".repeat(depth));
    survives(&model, &Source::Lark(nested(249)));
    survives(&model, &Source::Lark(nested(30_000)));
    survives(&model, &Source::Lark("start: start start | \"a\" | \"\"\n".to_owned()));
    survives(&model, &Source::Lark("start: a a a a a\na: b*\nb: c*\nc: \"x\"?\n".to_owned()));
    let mut rules = "start: r0\n".to_owned();
    for i in 0..2000 {
        let _ = writeln!(rules, "r{i}: \"x\" r{} | r{}", i + 1, i + 1);
    }
    rules.push_str("r2000: \"y\"\n");
    survives(&model, &Source::Lark(rules));
    let mut terminals = "start: T0\n".to_owned();
    for i in 0..1000 {
        let _ = writeln!(terminals, "T{i}: T{} T{}", i + 1, i + 1);
    }
    terminals.push_str("T1000: \"y\"\n");
    survives(&model, &Source::Lark(terminals));
    let names: String = (0..3000).map(|i| format!("T{i}: /[a-z]{{{i}}}x*/\n")).collect();
    let options: Vec<String> = (0..3000).map(|i| format!("T{i}")).collect();
    survives(&model, &Source::Lark(format!("start: {}\n{names}", options.join(" | "))));
}

#[test]
fn a_limit_that_strikes_late_is_an_error_of_that_answer() {
    let config = GrammarConfig { max_parser_items: 50, ..Model::config() };
    let model = Model::with_config(config);
    // What the parser keeps of it grows with every token.
    let source = Source::Lark("start: start start | \"a\" | \"\"\n".to_owned());
    let mut constraint = model.constraint(&source);
    let mut other = model.constraint(&source);
    let mut failure = None;
    for _ in 0..200 {
        if model.allowed(&mut constraint).is_empty() {
            failure = constraint.failure();
            break;
        }
        constraint.accept(u32::from(b'a'));
    }
    let failure = failure.expect("it becomes too complex");
    assert!(matches!(failure, GrammarError::TooComplex(_)), "{failure}");
    assert!(!model.allowed(&mut other).is_empty(), "another answer has its own limits");
}

#[test]
fn what_takes_too_long_to_compile_is_refused() {
    use std::{sync::Arc, time::Duration};

    use sconce_grammar::Grammars;
    use sconce_text::TextModel;

    let limit = Duration::ZERO;
    let config = GrammarConfig { compile_time: limit, ..GrammarConfig::default() };
    let grammars = Grammars::new(Arc::new(TextModel::bytes()), 300, config);
    // It takes much longer than its thread takes to start.
    let properties: Map<String, Value> = (0..500)
        .map(|i| (format!("p{i}"), json!({ "enum": [i, "a", null, { "b": i }] })))
        .collect();
    let schema = json!({ "type": "object", "properties": properties });
    let source = Source::JsonSchema(schema);
    let error = grammars.compile(crate::models::TENANT, &source).expect_err("no time");
    assert_eq!(error, GrammarError::TooSlow { limit });
}
