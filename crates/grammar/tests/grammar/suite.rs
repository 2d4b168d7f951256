//! The JSON Schema organisation's test suite, and schemas of growing difficulty: each is refused
//! with a reason, or every answer that ends under it is valid.

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use jsonschema::{Draft, Validator};
use sconce_grammar::{Grammar, GrammarError, Source};
use serde_json::{Value, json};

use crate::models::{Model, rng};

const WALKS: u64 = 3;
const MOST_TOKENS: usize = 300;

/// A validator of a schema that is not the compiler's.
pub(crate) fn validator(schema: &Value, draft: Draft) -> Validator {
    let options = jsonschema::options().with_draft(draft).should_validate_formats(true);
    options.build(schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

/// An answer as a value, unless it has a number with more digits than an f64 holds, which a
/// validator would round.
pub(crate) fn exact(answer: &str) -> Option<Value> {
    let digits =
        answer.split(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let is_exact =
        |run: &str| run.len() <= 15 && !run.contains(['e', 'E']) || run.parse::<f64>().is_err();
    digits.into_iter().all(is_exact).then(|| {
        serde_json::from_str(answer)
            .unwrap_or_else(|error| panic!("{answer:?} is no JSON: {error}"))
    })
}

/// The suite's groups: a schema and instances, each said to be valid or not.
fn groups() -> Vec<Value> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("json-schema-suite.json");
    if !file.exists() {
        let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grammar/fetch_suite.py");
        let output = Command::new("python3").arg(fetch).arg(&file).output().expect("Python 3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&std::fs::read(file).expect("it was fetched")).expect("JSON")
}

/// The same value with its objects' members in every order, as far as `most` of them: a grammar
/// has members in the schema's order.
fn orders(value: &Value, most: usize) -> Vec<Value> {
    match value {
        Value::Array(items) => {
            let mut all = vec![Vec::new()];
            for item in items {
                let ways = orders(item, most);
                all = all
                    .iter()
                    .flat_map(|head| {
                        ways.iter()
                            .map(move |way| [head.as_slice(), std::slice::from_ref(way)].concat())
                    })
                    .take(most)
                    .collect();
            }
            all.into_iter().map(Value::Array).collect()
        }
        Value::Object(members) => {
            let mut all = vec![serde_json::Map::new()];
            for (name, member) in members {
                let ways = &orders(member, most);
                all = all
                    .iter()
                    .flat_map(|head| {
                        (0..=head.len()).rev().flat_map(move |at| {
                            ways.iter().map(move |way| {
                                let mut with = head.clone();
                                with.shift_insert(at, name.clone(), way.clone());
                                with
                            })
                        })
                    })
                    .take(most)
                    .collect();
            }
            all.into_iter().map(Value::Object).collect()
        }
        other => vec![other.clone()],
    }
}

/// Whether an instance is an answer.
fn accepts(model: &Model, grammar: &Grammar, instance: &Value) -> bool {
    model.accepts_tokens(&mut grammar.constraint(), &model.bytes_of(&instance.to_string()))
}

/// Files of the suite that say more is valid than an answer may be, and what.
const DIFFERENCES: &[(&str, &str)] = &[
    ("/const.json", "1.0 is not written where 1 is asked for"),
    ("/enum.json", "the same"),
    ("/type.json", "the same"),
    ("/bignum.json", "integers have no exponents"),
    ("/float-overflow.json", "the same"),
    ("draft2020-12/format.json", "format is an annotation there"),
    ("/format/date-time.json", "no leap seconds"),
    ("/format/time.json", "the same"),
    ("/format/email.json", "no quoted names, no IPv6 addresses"),
    ("/format/ipv6.json", "no IPv4 address at an address's end"),
    ("/ecmascript-regex.json", "\\s is Unicode's White_Space, without U+FEFF"),
    ("/vocabulary.json", "vocabularies are not looked at"),
    ("draft7/ref.json", "what stands beside $ref counts, as in later drafts"),
    ("draft4/ref.json", "the same"),
];

#[derive(Default)]
struct Tally {
    compiled: usize,
    refused: usize,
    ended: usize,
    valid: usize,
    taken: usize,
    slowest: Duration,
    faults: String,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compiled, refused, ended, valid, taken, slowest, .. } = self;
        write!(
            f,
            "{compiled} compiled, {refused} refused, the slowest in {slowest:?}; {ended} answers; \
             {taken} of {valid} valid instances taken"
        )
    }
}

impl Tally {
    /// Compiles a schema; `None` where it is refused.
    fn compile(&mut self, model: &Model, schema: &Value, name: &str) -> Option<Grammar> {
        let begun = Instant::now();
        let compiled = model.compile(&Source::JsonSchema(schema.clone()));
        self.slowest = self.slowest.max(begun.elapsed());
        match compiled {
            Ok(grammar) => {
                self.compiled += 1;
                Some(grammar)
            }
            Err(GrammarError::At { what, .. } | GrammarError::Refused(what))
                if !what.is_empty() =>
            {
                self.refused += 1;
                None
            }
            Err(error) => {
                let _ = writeln!(self.faults, "{name}: {schema}: {error:?}");
                None
            }
        }
    }

    /// Draws answers; those that ended must be valid.
    fn draw(&mut self, model: &Model, grammar: &Grammar, schema: &Value, draft: Draft, name: &str) {
        let validator = validator(schema, draft);
        for seed in 0..WALKS {
            let answer = model.draw(&mut grammar.constraint(), &mut rng(seed), MOST_TOKENS);
            let Some(answer) = answer else { continue };
            let Some(value) = exact(&answer) else { continue };
            self.ended += 1;
            if !validator.is_valid(&value) {
                let _ = writeln!(self.faults, "{name}: {schema}: answered {answer}");
            }
        }
    }
}

#[test]
fn every_schema_of_the_suite_is_enforced_or_refused() {
    let models = [Model::bytes(), Model::bpe()];
    let [bytes, _] = &models;
    let mut tally = Tally::default();
    let mut seen = HashSet::new();
    for group in groups() {
        let schema = &group["schema"];
        // Drafts repeat each other's.
        let mut same = schema.clone();
        same.as_object_mut().map(|fields| fields.shift_remove("$schema"));
        if !seen.insert(format!("{same} {}", group["tests"])) {
            continue;
        }
        let file = group["file"].as_str().expect("a name");
        let name = format!("{file}, {}", group["description"]);
        let differs = DIFFERENCES.iter().any(|(of, _)| file.contains(of));
        let draft = match group["draft"].as_str() {
            Some("draft4") => Draft::Draft4,
            Some("draft7") => Draft::Draft7,
            _ => Draft::Draft202012,
        };
        let Some(grammar) = tally.compile(bytes, schema, &name) else { continue };
        for model in &models {
            let grammar = model.compile(&Source::JsonSchema(schema.clone())).expect("as before");
            tally.draw(model, &grammar, schema, draft, &name);
        }
        for test in group["tests"].as_array().expect("a list") {
            let instance = &test["data"];
            let ways = orders(instance, 24);
            let is_taken = ways.iter().any(|way| accepts(bytes, &grammar, way));
            if test["valid"] == json!(true) {
                tally.valid += 1;
                tally.taken += usize::from(is_taken);
                if !is_taken && !differs {
                    let _ = writeln!(tally.faults, "{name}: {schema}: does not take {instance}");
                }
            } else if is_taken && !file.ends_with("ecmascript-regex.json") {
                let _ = writeln!(tally.faults, "{name}: {schema}: takes {instance}");
            }
        }
    }
    println!("{tally}");
    assert!(tally.compiled + tally.refused > 450 && tally.compiled > 180, "{tally}");
    assert!(tally.taken * 20 > tally.valid * 17, "{tally}");
    assert!(tally.faults.is_empty(), "{}", tally.faults);
}

/// Schemas that ask for more and more of the same.
fn growing(n: usize) -> Vec<(&'static str, Value)> {
    let object = |properties: Vec<(String, Value)>| {
        let names: Vec<_> = properties.iter().map(|(name, _)| name.clone()).collect();
        let properties: serde_json::Map<_, _> = properties.into_iter().collect();
        json!({ "type": "object", "properties": properties, "required": names,
                "additionalProperties": false })
    };
    let kinds = [
        json!({ "type": "string", "maxLength": 5 }),
        json!({ "type": "integer", "minimum": -3, "maximum": 40 }),
        json!({ "type": ["boolean", "null"] }),
        json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 2 }),
    ];
    let kind = |i: usize| kinds[i % kinds.len()].clone();
    let members = || (0..n).map(|i| (format!("p{i}"), kind(i)));
    let tagged = |i: usize| {
        let kind_of = json!({ "const": format!("k{i}") });
        object(vec![("kind".into(), kind_of), ("value".into(), kind(i))])
    };
    let one_member = |i: usize| {
        let name = format!("p{i}");
        json!({ "type": "object", "required": [name], "properties": { name.clone(): kind(i) } })
    };
    let deep = n.min(24);
    let objects =
        (0..deep).fold(json!({ "type": "integer" }), |inner, _| object(vec![("a".into(), inner)]));
    let lists = (0..deep).fold(
        json!({ "type": "null" }),
        |inner, _| json!({ "type": "array", "items": inner, "minItems": 1, "maxItems": 2 }),
    );
    let chain: serde_json::Map<_, _> = (0..n)
        .map(|i| (format!("d{i}"), json!({ "$ref": format!("#/$defs/d{}", i + 1) })))
        .chain([(format!("d{n}"), kind(n))])
        .collect();
    let next = json!({ "type": "array", "maxItems": n, "items": { "$ref": "#/$defs/node" } });
    let node = json!({
        "type": "object", "required": ["v"], "additionalProperties": false,
        "properties": { "v": { "type": "integer" }, "next": next },
    });
    let names = [
        "date",
        "time",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    ];
    let format = |i: usize| json!({ "type": "string", "format": names[i % names.len()] });
    let formats = (0..n.min(10)).map(|i| (format!("p{i}"), format(n + i))).collect();
    let optional: serde_json::Map<_, _> = members().collect();
    let strings: Vec<_> = (0..8 * n).map(|i| format!("choice {i}")).collect();
    let tuple: Vec<_> = (0..n).map(kind).collect();
    let unions: Vec<_> = (0..n).map(tagged).collect();
    let parts: Vec<_> = (0..n).map(one_member).collect();
    let letters = format!(r"^(?:\p{{Lu}}\p{{Ll}}{{1,{n}}}|[а-я]{{{n}}}|🦖+)$");
    vec![
        ("objects in objects", objects),
        ("lists in lists", lists),
        ("members", object(members().collect())),
        (
            "optional members",
            json!({ "type": "object", "additionalProperties": false, "properties": optional }),
        ),
        ("strings", json!({ "enum": strings })),
        ("anyOf", json!({ "anyOf": unions })),
        ("oneOf", json!({ "oneOf": unions })),
        (
            "references",
            json!({ "$defs": chain, "type": "array", "items": { "$ref": "#/$defs/d0" },
                    "maxItems": 2 }),
        ),
        ("recursion", json!({ "$defs": { "node": node }, "$ref": "#/$defs/node" })),
        ("letters", json!({ "type": "string", "pattern": letters })),
        ("length", json!({ "type": "string", "minLength": n / 2, "maxLength": 2 * n })),
        ("items", json!({ "type": "array", "items": kind(n), "minItems": n, "maxItems": 2 * n })),
        ("tuple", json!({ "type": "array", "prefixItems": tuple, "minItems": n, "items": false })),
        ("allOf", json!({ "allOf": parts })),
        ("formats", object(formats)),
        ("a map", json!({ "type": "object", "additionalProperties": kind(n), "maxProperties": n })),
        (
            "names by pattern",
            json!({ "type": "object", "additionalProperties": false, "maxProperties": n,
                    "patternProperties": { "^[a-f]{1,4}$": kind(n) } }),
        ),
        (
            "numbers",
            json!({ "type": "integer", "multipleOf": n, "minimum": 0, "maximum": 1000 * n }),
        ),
    ]
}

#[test]
fn schemas_of_growing_difficulty_are_enforced() {
    let models = [Model::bytes(), Model::bpe()];
    let mut tally = Tally::default();
    for n in [1, 2, 3, 5, 8, 16, 32, 64] {
        for (name, schema) in growing(n) {
            let name = format!("{name}, {n}");
            for model in &models {
                let Some(grammar) = tally.compile(model, &schema, &name) else {
                    let error = model.compile(&Source::JsonSchema(schema.clone())).err();
                    let _ = writeln!(tally.faults, "{name}: {schema}: {error:?}");
                    continue;
                };
                tally.draw(model, &grammar, &schema, Draft::Draft202012, &name);
            }
        }
    }
    println!("{tally}");
    assert!(tally.faults.is_empty(), "{}", tally.faults);
    assert!(tally.compiled > 280 && tally.ended > 400, "{tally}");
}
