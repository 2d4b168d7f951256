//! What a request may ask of its answer's form, and the grammar that this is.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Map, Value, json};

use crate::{GrammarError, formats, lark, schema, structural_tag};

/// Strings of a choice.
const MAX_CHOICES: usize = 4096;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A JSON object, any.
    JsonObject,
    /// What a JSON schema describes.
    JsonSchema(Value),
    /// What a regular expression matches, all of it.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// A text of a context-free grammar, in Lark's syntax.
    Lark(String),
    /// The same of this program's making: only the schemas in it are checked.
    Own(String),
    /// Text with parts of a given form, as vLLM's `structural_tag` describes it.
    StructuralTag(Value),
}

impl Source {
    /// The source as one text, by which it is known again.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::JsonObject => "object".to_owned(),
            Self::JsonSchema(schema) => format!("schema {schema}"),
            Self::Regex(regex) => format!("regex {regex}"),
            Self::Choice(choices) => format!("choice {}", json!(choices)),
            Self::Lark(text) => format!("lark {text}"),
            Self::Own(text) => format!("own {text}"),
            Self::StructuralTag(tag) => format!("tag {tag}"),
        }
    }

    /// The body of a rule in Lark's syntax for what is JSON, with its schema; `None` for what is
    /// not said to be JSON.
    ///
    /// # Errors
    /// The place where the schema is not what it may be.
    pub fn json_rule(&self) -> Result<Option<(String, Value)>, GrammarError> {
        let schema = match self {
            Self::JsonObject => json!({ "type": "object" }),
            Self::JsonSchema(schema) => schema.clone(),
            _ => return Ok(None),
        };
        let rule = format!("%json {}", enforced(&schema)?);
        Ok(Some((rule, schema)))
    }

    /// Checks the source, and gives it as the compiler takes it.
    ///
    /// # Errors
    /// The place where it is not what it may be.
    pub(crate) fn grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        let grammar = match self {
            Self::JsonObject => GrammarWithLexer::from_json_schema(enforced(&json!({
                "type": "object"
            }))?),
            Self::JsonSchema(schema) => GrammarWithLexer::from_json_schema(enforced(schema)?),
            Self::Regex(regex) => GrammarWithLexer::from_lark(lark::of_regex(regex)?),
            Self::Choice(choices) => GrammarWithLexer::from_lark(of_choices(choices)?),
            Self::Lark(text) => GrammarWithLexer::from_lark(lark::check(text)?),
            Self::Own(text) => GrammarWithLexer::from_lark(lark::with_schemas(text)?),
            Self::StructuralTag(tag) => GrammarWithLexer::from_lark(structural_tag::to_lark(tag)?),
        };
        Ok(TopLevelGrammar::from_grammar(grammar))
    }
}

/// A schema that was checked, with how its JSON is written: a space or none after commas and
/// colons, and no other whitespace, of which a model might generate more and more.
pub(crate) fn enforced(schema: &Value) -> Result<Value, GrammarError> {
    schema::check(schema)?;
    let mut fields = match schema {
        Value::Object(fields) => fields.clone(),
        Value::Bool(false) => return Err(GrammarError::at("", "no JSON is valid under false")),
        _ => Map::new(),
    };
    // What an older draft does not know would be ignored.
    fields.shift_remove("$schema");
    let how = json!({
        "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
    });
    fields.insert("x-guidance".to_owned(), how);
    let mut schema = Value::Object(fields);
    formats::tighten(&mut schema);
    Ok(schema)
}

fn of_choices(choices: &[String]) -> Result<String, GrammarError> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let what = format!("there must be between 1 and {MAX_CHOICES} choices");
        return Err(GrammarError::at("", what));
    }
    if let Some(at) = choices.iter().position(String::is_empty) {
        return Err(GrammarError::at(format!("/{at}"), "a choice must not be empty"));
    }
    let literals: Vec<String> = choices.iter().map(|choice| lark::literal(choice)).collect();
    Ok(format!("start: CHOICE\nCHOICE: {}\n", literals.join(" | ")))
}
