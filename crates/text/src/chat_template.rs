//! From messages to a prompt.

use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde_json::Map;

use crate::TextError;

/// Instructions that a template may run; a long conversation needs a small
/// part of it, a template that loops without end hits it in a second.
const FUEL: u64 = 10_000_000;

/// What a caller may tell a template beside the messages.
#[derive(Clone, Debug)]
pub struct ChatTemplateOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, by name.
    pub kwargs: Map<String, serde_json::Value>,
}

impl Default for ChatTemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, kwargs: Map::new() }
    }
}

/// A model's chat template. It comes from the model directory or from the
/// operator, never from a request.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    pub(crate) fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        // As transformers renders templates.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters are valid");
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source).map_err(|error| describe(&error))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The template itself.
    pub(crate) fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template.expect("the environment was made with this template").source().to_owned()
    }

    pub(crate) fn render(
        &self,
        messages: &[serde_json::Value],
        options: &ChatTemplateOptions,
    ) -> Result<String, TextError> {
        let mut variables = options.kwargs.clone();
        let mut set = |name: &str, value: serde_json::Value| {
            variables.insert(name.to_owned(), value);
        };
        set("messages", messages.into());
        set("add_generation_prompt", options.add_generation_prompt.into());
        if let Some(token) = &self.bos_token {
            set("bos_token", token.as_str().into());
        }
        if let Some(token) = &self.eos_token {
            set("eos_token", token.as_str().into());
        }
        let template = self
            .environment
            .get_template(NAME)
            .expect("the environment was made with this template");
        template.render(Value::from(Serde(&variables))).map_err(|error| match refusal(&error) {
            Some(reason) => TextError::InvalidMessages(reason),
            None => TextError::TemplateFailed(describe(&error)),
        })
    }
}

/// Marks what a template raised on purpose.
const RAISED: &str = "raise_exception: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(detail) = error.downcast_ref::<Error>().and_then(Error::detail)
            && let Some(message) = detail.strip_prefix(RAISED)
        {
            return Some(message.to_owned());
        }
        cause = error.source();
    }
    None
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    format!("{}{detail}{line}", error.kind())
}

/// Today's date in the few formats that templates use.
fn strftime_now(format: &str) -> Result<String, Error> {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = since_epoch.map_or(0, |time| time.as_secs() / 86_400);
    let (year, month, day) = civil_from_days(days);
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let name = MONTHS[month - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('Y')) => out.push_str(&year.to_string()),
            ('%', Some('m')) => out.push_str(&format!("{month:02}")),
            ('%', Some('d')) => out.push_str(&format!("{day:02}")),
            ('%', Some('B')) => out.push_str(name),
            ('%', Some('b')) => out.push_str(&name[..3]),
            ('%', Some('%')) => out.push('%'),
            ('%', other) => {
                let message = format!("strftime_now does not know %{}", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar
/// (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, usize::try_from(month).expect("a month is below 13"), day)
}

/// transformers' `tojson`: Python's `json.dumps` without ASCII escapes, so `, `
/// and `: ` between items unless an indent is given.
fn tojson(Serde(value): Serde<serde_json::Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    dump(&value, indent.map(|width| width.min(16)), 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn dump(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let separate = |first: bool, depth: usize, out: &mut String| match indent {
        Some(width) => {
            out.push_str(if first { "\n" } else { ",\n" });
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
        None if first => {}
        None => out.push_str(", "),
    };
    let close = |empty: bool, out: &mut String| {
        if let (Some(width), false) = (indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    match value {
        serde_json::Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i == 0, depth + 1, out);
                dump(item, indent, depth + 1, out);
            }
            close(items.is_empty(), out);
            out.push(']');
        }
        serde_json::Value::Object(fields) => {
            out.push('{');
            for (i, (name, item)) in fields.iter().enumerate() {
                separate(i == 0, depth + 1, out);
                out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                out.push_str(": ");
                dump(item, indent, depth + 1, out);
            }
            close(fields.is_empty(), out);
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source.to_owned(), Some("<s>".to_owned()), Some("</s>".to_owned()))
            .expect("the template parses")
    }

    fn render(source: &str, messages: serde_json::Value) -> Result<String, TextError> {
        let messages = messages.as_array().expect("a list").clone();
        template(source).render(&messages, &ChatTemplateOptions::default())
    }

    const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('roles must alternate') }}{% endif %}\
        {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
        {% else %}{{ message['content'].strip() + eos_token }}{% endif %}{% endfor %}";

    #[test]
    fn a_template_sees_messages_tokens_and_python_methods() {
        let text = render(
            MISTRAL,
            json!([
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": " Hello "},
                {"role": "user", "content": "Bye"},
            ]),
        );
        assert_eq!(text.expect("it renders"), "<s>[INST] Hi [/INST]Hello</s>[INST] Bye [/INST]");
    }

    #[test]
    fn what_a_template_raises_is_the_clients_fault() {
        let text = render(MISTRAL, json!([{"role": "assistant", "content": "Hi"}]));
        assert!(matches!(text, Err(TextError::InvalidMessages(m)) if m == "roles must alternate"));
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n";
        assert_eq!(render(source, json!([{"content": "a"}])).expect("it renders"), "a\nend");
    }

    #[test]
    fn a_template_that_never_ends_runs_out_of_fuel() {
        let source =
            "{% for a in range(10000) %}{% for b in range(10000) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, json!([])), Err(TextError::TemplateFailed(_))));
    }

    #[test]
    fn tojson_writes_as_python_does() {
        let source = "{{ messages[0] | tojson }}|{{ messages[0] | tojson(indent=2) }}";
        let text = render(source, json!([{"é": [1, "<'>"], "e": {}}])).expect("it renders");
        assert_eq!(
            text,
            "{\"é\": [1, \"<'>\"], \"e\": {}}|{\n  \"é\": [\n    1,\n    \"<'>\"\n  ],\n  \"e\": {}\n}"
        );
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(20_513), (2026, 3, 1));
    }

    #[test]
    fn a_broken_template_says_where() {
        let broken = ChatTemplate::new("{% for %}".to_owned(), None, None);
        assert!(broken.expect_err("it does not parse").contains("line 1"));
    }
}
