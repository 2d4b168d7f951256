//! Text in which parts have a given form, such as calls of functions: vLLM's
//! `structural_tag`, in its first form (`structures` and `triggers`) and in the one with a
//! `format`.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::{GrammarError, lark, source};

/// Formats in formats.
const MAX_DEPTH: usize = 32;

/// The grammar, in Lark's syntax, of what a structural tag describes.
///
/// # Errors
/// The place where it is not what it may be.
pub(crate) fn to_lark(tag: &Value) -> Result<String, GrammarError> {
    let fields = object(tag, "")?;
    let mut rules = Rules { text: String::new(), count: 0 };
    let start = if fields.contains_key("structures") {
        known(fields, "", &["type", "structures", "triggers"])?;
        first_form(fields, &mut rules)?
    } else {
        known(fields, "", &["type", "format"])?;
        rules.format(field(fields, "", "format")?, "/format", 0)?
    };
    if let Some(kind) = fields.get("type").filter(|kind| **kind != "structural_tag") {
        let what = format!("it is {kind} and must be \"structural_tag\"");
        return Err(GrammarError::at("/type", what));
    }
    // Any text; what ends it is shorter, and so it ends there.
    Ok(format!("start: {start}\n{}TEXT: /(.|\\n)*/\n", rules.text))
}

/// `structures` of `begin`, `schema` and `end`, each after one of the `triggers`.
fn first_form(fields: &Map<String, Value>, rules: &mut Rules) -> Result<String, GrammarError> {
    let mut tags = Vec::new();
    for (i, structure) in array(field(fields, "", "structures")?, "/structures")?.iter().enumerate()
    {
        let at = format!("/structures/{i}");
        let structure = object(structure, &at)?;
        known(structure, &at, &["begin", "schema", "end"])?;
        let schema = schema(field(structure, &at, "schema")?, &format!("{at}/schema"))?;
        tags.push(Tag {
            begin: string(structure, &at, "begin")?.to_owned(),
            body: schema,
            end: string(structure, &at, "end")?.to_owned(),
            at,
        });
    }
    let tag = rules.triggered(&tags, &strings(fields, "", "triggers")?, "")?;
    Ok(format!("{tag}* TEXT"))
}

struct Tag {
    begin: String,
    /// What stands between, in Lark.
    body: String,
    end: String,
    at: String,
}

impl Tag {
    /// Appends what follows its beginning.
    fn push_rest(&self, rule: &mut String) {
        let _ = write!(rule, " ({})", self.body);
        if !self.end.is_empty() {
            let _ = write!(rule, " {}", lark::literal(&self.end));
        }
    }
}

/// Rules of the grammar as it grows.
struct Rules {
    text: String,
    count: usize,
}

impl Rules {
    /// Adds a rule; gives its name.
    fn add(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("r{}", self.count);
        self.count += 1;
        let _ = writeln!(self.text, "{name}{attributes}: {body}");
        name
    }

    /// Any text up to one of the triggers, and then a tag that begins with it.
    fn triggered(
        &mut self,
        tags: &[Tag],
        triggers: &[String],
        at: &str,
    ) -> Result<String, GrammarError> {
        let mut options = Vec::new();
        for tag in tags {
            let trigger = triggers.iter().find_map(|trigger| {
                tag.begin.strip_prefix(trigger.as_str()).map(|rest| (trigger, rest))
            });
            let Some((trigger, rest)) = trigger else {
                let what = format!("{:?} begins with none of the triggers", tag.begin);
                return Err(GrammarError::at(format!("{}/begin", tag.at), what));
            };
            let mut body = self.add("[lazy]", &format!("TEXT {}", lark::literal(trigger)));
            if !rest.is_empty() {
                let _ = write!(body, " {}", lark::literal(rest));
            }
            tag.push_rest(&mut body);
            options.push(self.add("", &body));
        }
        if options.is_empty() {
            return Err(GrammarError::at(at, "there must be at least one tag"));
        }
        Ok(self.add("", &options.join(" | ")))
    }

    /// What a format describes, in Lark.
    fn format(&mut self, format: &Value, at: &str, depth: usize) -> Result<String, GrammarError> {
        if depth > MAX_DEPTH {
            let what = format!("formats are nested more than {MAX_DEPTH} deep");
            return Err(GrammarError::at(at, what));
        }
        let fields = object(format, at)?;
        match string(fields, at, "type")? {
            "const_string" => {
                known(fields, at, &["type", "value"])?;
                Ok(lark::literal(non_empty(fields, at, "value")?))
            }
            "json_schema" => {
                known(fields, at, &["type", "json_schema"])?;
                let at = format!("{at}/json_schema");
                schema(field(fields, "", "json_schema")?, &at)
            }
            "regex" => {
                known(fields, at, &["type", "pattern"])?;
                let at = format!("{at}/pattern");
                lark::regex(string(fields, "", "pattern")?).map_err(|error| error.below(&at))
            }
            "any_text" => {
                known(fields, at, &["type"])?;
                Ok("TEXT".to_owned())
            }
            kind @ ("sequence" | "or") => {
                known(fields, at, &["type", "elements"])?;
                let at = format!("{at}/elements");
                let elements = array(field(fields, "", "elements")?, &at)?.iter().enumerate();
                let parts = elements
                    .map(|(i, part)| {
                        Ok(format!("({})", self.format(part, &format!("{at}/{i}"), depth + 1)?))
                    })
                    .collect::<Result<Vec<_>, GrammarError>>()?;
                if parts.is_empty() {
                    return Err(GrammarError::at(at, "there must be at least one element"));
                }
                Ok(parts.join(if kind == "or" { " | " } else { " " }))
            }
            "tag" => {
                let tag = self.tag(fields, at, depth)?;
                Ok(self.whole(&tag))
            }
            "triggered_tags" => {
                known(
                    fields,
                    at,
                    &["type", "triggers", "tags", "at_least_one", "stop_after_first"],
                )?;
                let tags = self.tags(fields, at, depth)?;
                let tag = self.triggered(&tags, &strings(fields, at, "triggers")?, at)?;
                let at_least_one = flag(fields, at, "at_least_one")?;
                Ok(match (at_least_one, flag(fields, at, "stop_after_first")?) {
                    (true, true) => tag,
                    (false, true) => format!("{tag} | TEXT"),
                    (true, false) => format!("{tag}+ TEXT"),
                    (false, false) => format!("{tag}* TEXT"),
                })
            }
            "tags_with_separator" => {
                let names = ["type", "tags", "separator", "at_least_one", "stop_after_first"];
                known(fields, at, &names)?;
                let tags = self.tags(fields, at, depth)?;
                let options: Vec<String> = tags.iter().map(|tag| self.whole(tag)).collect();
                if options.is_empty() {
                    return Err(GrammarError::at(at, "there must be at least one tag"));
                }
                let tag = self.add("", &options.join(" | "));
                let separator = string(fields, at, "separator")?;
                let next = match separator {
                    "" => tag.clone(),
                    text => format!("({} {tag})", lark::literal(text)),
                };
                let all = match flag(fields, at, "stop_after_first")? {
                    true => tag,
                    false => format!("{tag} {next}*"),
                };
                let at_least_one = flag(fields, at, "at_least_one")?;
                Ok(if at_least_one { all } else { format!("({all})?") })
            }
            other => {
                let what = format!(
                    "the format {other:?} is not supported, but const_string, json_schema, regex, \
                     any_text, sequence, or, tag, triggered_tags and tags_with_separator are"
                );
                Err(GrammarError::at(format!("{at}/type"), what))
            }
        }
    }

    fn tags(
        &mut self,
        fields: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<Vec<Tag>, GrammarError> {
        let at = format!("{at}/tags");
        let tags = array(field(fields, "", "tags")?, &at)?.iter().enumerate();
        tags.map(|(i, tag)| {
            let at = format!("{at}/{i}");
            self.tag(object(tag, &at)?, &at, depth)
        })
        .collect()
    }

    fn tag(
        &mut self,
        fields: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<Tag, GrammarError> {
        known(fields, at, &["type", "begin", "content", "end"])?;
        let content = field(fields, at, "content")?;
        let end = string(fields, at, "end")?.to_owned();
        let begin = non_empty(fields, at, "begin")?.to_owned();
        let at_content = format!("{at}/content");
        if content["type"] == "any_text" && !end.is_empty() {
            // The text ends where the tag's end begins.
            let body = self.add("[lazy]", &format!("TEXT {}", lark::literal(&end)));
            return Ok(Tag { begin, body, end: String::new(), at: at.to_owned() });
        }
        let body = self.format(content, &at_content, depth + 1)?;
        Ok(Tag { begin, body, end, at: at.to_owned() })
    }

    fn whole(&mut self, tag: &Tag) -> String {
        let mut body = lark::literal(&tag.begin);
        tag.push_rest(&mut body);
        self.add("", &body)
    }
}

fn schema(schema: &Value, at: &str) -> Result<String, GrammarError> {
    let schema = source::enforced(schema).map_err(|error| error.below(at))?;
    Ok(format!("%json {schema}"))
}

fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, GrammarError> {
    value.as_object().ok_or_else(|| GrammarError::at(at, "it must be an object"))
}

fn array<'a>(value: &'a Value, at: &str) -> Result<&'a [Value], GrammarError> {
    let array = value.as_array().ok_or_else(|| GrammarError::at(at, "it must be an array"))?;
    Ok(array)
}

fn field<'a>(
    fields: &'a Map<String, Value>,
    at: &str,
    name: &str,
) -> Result<&'a Value, GrammarError> {
    fields.get(name).ok_or_else(|| GrammarError::at(at, format!("it has no {name:?}")))
}

fn string<'a>(
    fields: &'a Map<String, Value>,
    at: &str,
    name: &str,
) -> Result<&'a str, GrammarError> {
    let value = field(fields, at, name)?.as_str();
    value.ok_or_else(|| GrammarError::at(format!("{at}/{name}"), "it must be a string"))
}

fn non_empty<'a>(
    fields: &'a Map<String, Value>,
    at: &str,
    name: &str,
) -> Result<&'a str, GrammarError> {
    let text = string(fields, at, name)?;
    let what = "it must not be empty";
    if text.is_empty() { Err(GrammarError::at(format!("{at}/{name}"), what)) } else { Ok(text) }
}

fn strings(fields: &Map<String, Value>, at: &str, name: &str) -> Result<Vec<String>, GrammarError> {
    let values = field(fields, at, name)?.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<String> =
        values.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    if texts.is_empty() || texts.len() < values.len() || texts.iter().any(String::is_empty) {
        let what = "it must be an array of strings that are not empty";
        return Err(GrammarError::at(format!("{at}/{name}"), what));
    }
    Ok(texts)
}

fn flag(fields: &Map<String, Value>, at: &str, name: &str) -> Result<bool, GrammarError> {
    match fields.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(GrammarError::at(format!("{at}/{name}"), "it must be true or false")),
    }
}

fn known(fields: &Map<String, Value>, at: &str, names: &[&str]) -> Result<(), GrammarError> {
    match fields.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => {
            let what = format!("it is not a field here; {} are", names.join(", "));
            Err(GrammarError::at(format!("{at}/{name}"), what))
        }
        None => Ok(()),
    }
}
