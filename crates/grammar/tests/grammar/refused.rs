//! What is refused, and what its place is called.

use sconce_grammar::{GrammarError, Source};
use serde_json::{Value, json};

use crate::models::Model;

#[track_caller]
fn refusal(model: &Model, source: &Source) -> String {
    match model.compile(source) {
        Ok(_) => panic!("{source:?} is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_schema_says_and_is_not_enforced_is_refused_with_its_place() {
    let model = Model::bytes();
    let cases: &[(Value, &str, &str)] = &[
        (
            json!({ "type": "string", "nullable": true }),
            "/nullable",
            "the keyword \"nullable\" is not supported",
        ),
        (
            json!({ "type": "string", "contentEncoding": "base64" }),
            "/contentEncoding",
            "is not supported",
        ),
        (
            json!({ "type": "string", "contentMediaType": "a/b" }),
            "/contentMediaType",
            "is not supported",
        ),
        (
            json!({ "properties": { "a/b": { "typ": "string" } } }),
            "/properties/a~1b/typ",
            "\"typ\"",
        ),
        (json!({ "items": { "uniqueItems": true } }), "/items/uniqueItems", "is not supported"),
        (json!({ "anyOf": [true, { "not": {} }] }), "/anyOf/1/not", "is not supported"),
        (json!({ "if": {}, "then": {} }), "/if", "is not supported"),
        (json!({ "contains": {} }), "/contains", "is not supported"),
        (json!({ "propertyNames": {} }), "/propertyNames", "is not supported"),
        (json!({ "dependentRequired": {} }), "/dependentRequired", "is not supported"),
        (json!({ "unevaluatedProperties": false }), "/unevaluatedProperties", "is not supported"),
        (json!({ "$dynamicRef": "#a" }), "/$dynamicRef", "is not supported"),
        (json!({ "x-guidance": { "lenient": true } }), "/x-guidance", "is not supported"),
        (json!({ "type": "strng" }), "/type", "one of null, boolean"),
        (json!({ "type": [] }), "/type", "one of null, boolean"),
        (
            json!({ "format": "iri" }),
            "/format",
            "the format \"iri\" is not supported, but date-time",
        ),
        (json!({ "properties": [] }), "/properties", "an object of schemas"),
        (json!({ "required": ["a", 1] }), "/required", "an array of strings"),
        (json!({ "required": true }), "/required", "an array of strings"),
        (json!({ "minItems": -1 }), "/minItems", "a whole number"),
        (json!({ "maxLength": 1.5 }), "/maxLength", "a whole number"),
        (json!({ "minimum": "1" }), "/minimum", "a number"),
        (json!({ "multipleOf": 0 }), "/multipleOf", "a positive number"),
        (json!({ "multipleOf": 1_000_003 }), "/multipleOf", "at most 9999"),
        (json!({ "enum": [] }), "/enum", "at least one"),
        (json!({ "anyOf": [] }), "/anyOf", "at least one"),
        (json!({ "items": 3 }), "/items", "a schema is an object"),
        (json!({ "pattern": 3 }), "/pattern", "a string"),
        (json!({ "additionalItems": false }), "/additionalItems", "use items"),
        (json!({ "prefixItems": [true], "items": [true] }), "/items", "beside prefixItems"),
        (json!({ "exclusiveMinimum": true }), "/exclusiveMinimum", "must be a number"),
        (json!({ "$ref": "http://example.org/a" }), "/$ref", "names no place"),
        (json!({ "$ref": "#/$defs/none" }), "/$ref", "names no place"),
        (json!({ "$ref": "#name", "$anchor": "name" }), "/$ref", "names no place"),
        // A place that is a schema only because a reference names it.
        (
            json!({ "$ref": "#/default/a", "default": { "a": { "nullable": true } } }),
            "/default/a/nullable",
            "is not supported",
        ),
        (json!(false), "the top", "no JSON is valid"),
        (json!("text"), "the top", "a schema is an object"),
        (json!(null), "the top", "a schema is an object"),
    ];
    for (schema, place, what) in cases {
        let message = refusal(&model, &Source::JsonSchema(schema.clone()));
        assert!(message.starts_with(&format!("at {place}: ")), "{schema}: {message}");
        assert!(message.contains(what), "{schema}: {message}");
    }
}

#[test]
fn what_the_compiler_refuses_is_refused() {
    let model = Model::bytes();
    let cases: &[(Value, &str)] = &[
        (json!({ "$ref": "#" }), ""),
        (
            json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
            "",
        ),
        (json!({ "type": "integer", "minimum": 3, "maximum": 2 }), "minimum"),
        (json!({ "allOf": [{ "type": "string" }, { "type": "integer" }] }), "nsatisfiable"),
        (json!({ "oneOf": [{ "type": "number" }, { "type": "integer" }] }), "oneOf"),
        (json!({ "type": "string", "pattern": "(?=a)b" }), ""),
        (json!({ "type": "string", "pattern": "(a" }), ""),
        (json!({ "properties": { "a": {} }, "minProperties": 1 }), "maxProperties"),
    ];
    for (schema, what) in cases {
        let message = refusal(&model, &Source::JsonSchema(schema.clone()));
        assert!(message.contains(what), "{schema}: {message}");
        assert!(!message.is_empty() && message.len() < 500, "{schema}: {message}");
    }
}

#[test]
fn annotations_and_names_that_look_like_keywords_are_taken() {
    let model = Model::bytes();
    let schema = json!({
        "$schema": "http://json-schema.org/draft-04/schema#", "$id": "https://example.org/x",
        "$comment": "c", "title": "t", "description": "d", "default": {}, "examples": [{}],
        "deprecated": false, "readOnly": false, "writeOnly": false,
        "type": "object", "required": ["not"], "additionalProperties": false,
        "properties": { "not": { "const": 1 }, "nullable": { "enum": [{ "if": 1 }] } },
    });
    let source = Source::JsonSchema(schema);
    assert!(model.accepts(&source, "{\"not\": 1}"));
    // In draft 4 const is no keyword; here every keyword counts.
    assert!(!model.accepts(&source, "{\"not\": 2}"));
    assert!(model.accepts(&source, "{\"not\":1,\"nullable\":{\"if\":1}}"));
    assert!(model.accepts(&Source::JsonSchema(json!(true)), "[1, {\"a\": null}]"));
}

#[test]
fn whitespace_is_one_space_at_most() {
    let model = Model::bytes();
    let source = Source::JsonObject;
    for text in ["{\"a\": [1, 2]}", "{\"a\":[1,2]}", "{}"] {
        assert!(model.accepts(&source, text), "{text}");
    }
    for text in ["{ }", "{\"a\":  1}", "{\"a\":\n1}", "{}\n", " {}", "{\"a\" : 1}"] {
        assert!(!model.accepts(&source, text), "{text}");
    }
}

#[test]
fn other_sources_are_refused_in_their_words() {
    let model = Model::bytes();
    let cases: &[(Source, &str)] = &[
        (Source::Regex(String::new()), "must not be empty"),
        (Source::Regex("^$".to_owned()), "must not be empty"),
        (Source::Regex("(a".to_owned()), ""),
        (Source::Regex(r"(a)\1".to_owned()), ""),
        (Source::Regex("(".repeat(300)), "nested 300 deep"),
        (Source::Choice(vec![]), "between 1 and 4096"),
        (Source::Choice(vec!["a".to_owned(), String::new()]), "at /1: "),
        (Source::Choice(vec!["a".to_owned(); 5000]), "between 1 and 4096"),
        (Source::Lark("root ::= \"a\"".to_owned()), "Lark's syntax"),
        (Source::Lark("start: nothing\n".to_owned()), "nothing"),
        (Source::Lark(String::new()), ""),
        (
            Source::Lark("start: %json {\"nullable\": true}\n".to_owned()),
            "in the schema of line 1, at \"/nullable\"",
        ),
        (
            Source::Lark("start: %json {\"x-guidance\": {\"lenient\": true}}\n".to_owned()),
            "at \"/x-guidance\"",
        ),
        (Source::StructuralTag(json!({ "type": "structural_tag" })), "it has no \"format\""),
        (
            Source::StructuralTag(json!({ "type": "tag", "format": { "type": "any_text" } })),
            "at /type",
        ),
        (
            Source::StructuralTag(json!({ "format": { "type": "xml" } })),
            "at /format/type: the format \"xml\"",
        ),
        (
            Source::StructuralTag(
                json!({ "structures": [{ "begin": "<a>", "schema": { "nullable": 1 }, "end": "" }], "triggers": ["<"] }),
            ),
            "at /structures/0/schema/nullable",
        ),
        (
            Source::StructuralTag(
                json!({ "structures": [{ "begin": "a", "schema": {}, "end": "" }], "triggers": ["<"] }),
            ),
            "at /structures/0/begin: \"a\" begins with none of the triggers",
        ),
        (Source::StructuralTag(json!({ "structures": [], "triggers": ["<"] })), "at least one tag"),
        (
            Source::StructuralTag(
                json!({ "format": { "type": "const_string", "value": "a", "valeu": 1 } }),
            ),
            "at /format/valeu",
        ),
    ];
    for (source, what) in cases {
        let message = refusal(&model, source);
        assert!(message.contains(what), "{source:?}: {message}");
        assert!(!message.is_empty(), "{source:?}");
    }
}

#[test]
fn nesting_and_length_are_bounded() {
    let model = Model::bytes();
    let mut deep = json!({});
    for _ in 0..70 {
        deep = json!({ "items": deep });
    }
    let message = refusal(&model, &Source::JsonSchema(deep));
    assert!(message.contains("nested more than 64 deep"), "{message}");
    let long = Source::JsonSchema(json!({ "description": "x".repeat(70_000) }));
    let error = model.compile(&long).expect_err("it is long");
    assert!(matches!(error, GrammarError::TooLong { limit: 65_536, .. }), "{error}");
}
