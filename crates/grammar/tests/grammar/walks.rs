//! Answers drawn at random through masks are what was asked for, and every end is allowed only
//! where the answer is whole.

use jsonschema::Draft;
use regex::Regex;
use sconce_grammar::Source;
use serde_json::{Value, json};

use crate::{
    models::{Model, rng},
    suite::{exact, validator},
};

const WALKS: u64 = 12;
const MOST_TOKENS: usize = 600;

fn models() -> [(&'static str, Model); 2] {
    [("bytes", Model::bytes()), ("bpe", Model::bpe())]
}

fn schemas() -> Vec<Value> {
    serde_json::from_str(include_str!("schemas.json")).expect("a list of schemas")
}

/// Draws answers; all that ended must be right, and most must end.
fn check(source: &Source, is_right: impl Fn(&str) -> bool) {
    for (name, model) in models() {
        let mut ended = 0;
        for seed in 0..WALKS {
            let mut constraint = model.constraint(source);
            let Some(answer) = model.draw(&mut constraint, &mut rng(seed), MOST_TOKENS) else {
                continue;
            };
            ended += 1;
            assert!(is_right(&answer), "{name}, seed {seed}, {source:?}: {answer:?}");
        }
        assert!(ended > WALKS / 3, "{name}, {source:?}: only {ended} answers ended");
    }
}

#[test]
fn json_of_a_schema_is_valid() {
    let schemas = schemas();
    assert_eq!(schemas.len(), 30);
    for schema in schemas {
        let validator = validator(&schema, Draft::Draft202012);
        check(&Source::JsonSchema(schema), |answer| {
            exact(answer).is_none_or(|value| validator.is_valid(&value))
        });
    }
}

#[test]
fn any_json_object_is_one() {
    check(&Source::JsonObject, |answer| {
        serde_json::from_str(answer).is_ok_and(|value: Value| value.is_object())
    });
}

#[test]
fn a_regular_expression_matches_the_whole_answer() {
    for regex in [r"[a-c]{2,4}(-\d+)?", r"^(é|🦖|x)+$", r"/\w{3}/\$", r"(yes|no)"] {
        let whole = Regex::new(&format!(
            "^(?:{})$",
            regex
                .trim_start_matches('^')
                .strip_suffix('$')
                .filter(|r| !r.ends_with('\\'))
                .unwrap_or(regex)
        ));
        let whole = whole.expect("a pattern");
        check(&Source::Regex(regex.to_owned()), |answer| whole.is_match(answer));
    }
}

#[test]
fn a_choice_is_one_of_the_strings() {
    let choices = ["yes", "no", "yes, but", "a \"b\" \\ c\n", "<|eot_id|>", "é🦖", "\u{7f}/(x)*"];
    let choices = choices.map(str::to_owned).to_vec();
    check(&Source::Choice(choices.clone()), |answer| choices.iter().any(|c| c == answer));
    let bpe = Model::bpe();
    for choice in &choices {
        assert!(bpe.accepts(&Source::Choice(choices.clone()), choice), "{choice:?}");
    }
    assert!(!bpe.accepts(&Source::Choice(choices), "yes,"));
}

#[test]
fn a_grammar_in_larks_syntax_is_kept_to() {
    let text = "start: sum\nsum: product (\"+\" product)*\nproduct: atom (\"*\" atom)*\n\
                atom: /[0-9]{1,3}/ | \"(\" sum \")\"\n";
    check(&Source::Lark(text.to_owned()), |answer| {
        let mut depth = 0_i32;
        let is_balanced = answer.chars().all(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth >= 0
        });
        is_balanced && depth == 0 && Regex::new(r"^[0-9+*()]+$").unwrap().is_match(answer)
    });
    let bytes = Model::bytes();
    let lark = |text: &str| Source::Lark(text.to_owned());
    assert!(bytes.accepts(&lark(text), "(1+2)*345"));
    assert!(!bytes.accepts(&lark(text), "(1+2"));
    let nested = "start: \"<\" %json {\"type\": \"integer\"} \">\"\n";
    assert!(bytes.accepts(&lark(nested), "<12>"));
    let styled = "start: %json {\"type\":\"array\",\"x-guidance\":{\"item_separator\":\"; \"}}\n";
    assert!(bytes.accepts(&lark(styled), "[1; 2]"));
}

#[test]
fn structural_tags_hold_within_free_text() {
    let schema = json!({
        "type": "object", "properties": { "x": { "type": "integer" } }, "required": ["x"],
        "additionalProperties": false,
    });
    let first = json!({
        "type": "structural_tag", "triggers": ["<fn="],
        "structures": [
            { "begin": "<fn=a>", "schema": schema, "end": "</fn>" },
            { "begin": "<fn=b>", "schema": { "type": "boolean" }, "end": "</fn>" },
        ],
    });
    let tag = |name: &str, content: Value| {
        json!({ "type": "tag", "begin": format!("<fn={name}>"), "content": content,
                "end": "</fn>" })
    };
    let json_schema = |schema: &Value| json!({ "type": "json_schema", "json_schema": schema });
    let tags = json!([
        tag("a", json_schema(&schema)),
        tag("b", json_schema(&json!({ "type": "boolean" })))
    ]);
    let triggered = |more: Value| {
        let mut format = json!({ "type": "triggered_tags", "triggers": ["<fn="], "tags": tags });
        for (name, value) in more.as_object().unwrap() {
            format[name] = value.clone();
        }
        Source::StructuralTag(json!({ "type": "structural_tag", "format": format }))
    };
    let free = ["", "text < fn", "t <fn=a>{\"x\": 1}</fn> and <fn=b>true</fn>", "<f"];
    let broken = ["<fn=a>{\"x\": 1}", "<fn=c>", "x<fn=b>1</fn>", "<fn=", "<fn=a>{}</fn>"];
    let model = Model::bpe();
    for source in [Source::StructuralTag(first), triggered(json!({}))] {
        for text in free {
            assert!(model.accepts(&source, text), "{text:?} {source:?}");
        }
        for text in broken {
            assert!(!model.accepts(&source, text), "{text:?} {source:?}");
        }
    }
    let once = triggered(json!({ "at_least_one": true, "stop_after_first": true }));
    assert!(model.accepts(&once, "so: <fn=b>false</fn>"));
    assert!(!model.accepts(&once, "so: "));
    assert!(!model.accepts(&once, "<fn=b>false</fn> more"));
    let sequence = Source::StructuralTag(json!({
        "type": "structural_tag",
        "format": { "type": "sequence", "elements": [
            { "type": "const_string", "value": "<think>" },
            { "type": "tag", "begin": "", "content": { "type": "any_text" }, "end": "</think>" },
        ]},
    }));
    let error = model.compile(&sequence).expect_err("begin is empty");
    assert_eq!(error.to_string(), "at /format/elements/1/begin: it must not be empty");
    let sequence = Source::StructuralTag(json!({
        "type": "structural_tag",
        "format": { "type": "sequence", "elements": [
            { "type": "tag", "begin": "<think>", "content": { "type": "any_text" }, "end": "</think>" },
            { "type": "or", "elements": [
                { "type": "regex", "pattern": "[0-9]+" }, json_schema(&schema),
                { "type": "tags_with_separator", "separator": ";", "at_least_one": true, "tags": tags },
            ]},
        ]},
    }));
    for text in [
        "<think>a < b</think>12",
        "<think></think>{\"x\":3}",
        "<think>\n</think><fn=b>true</fn>;<fn=a>{\"x\": 0}</fn>",
    ] {
        assert!(model.accepts(&sequence, text), "{text:?}");
    }
    for text in ["12", "<think>a</think>", "<think>a</think>x", "<think>a</think><fn=b>true</fn>;"]
    {
        assert!(!model.accepts(&sequence, text), "{text:?}");
    }
}
