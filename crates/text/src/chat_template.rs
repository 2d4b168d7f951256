//! From messages to a prompt.

mod arguments;
mod budget;
mod characters;
mod filters;
mod generator;
mod json;
mod methods;
mod operators;
mod percent;
mod python;
mod source;
mod strftime;

use std::{
    borrow::Cow,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use minijinja::{AutoEscape, Environment, Error, Value, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, json};

use crate::TextError;

/// Instructions that a template may run; a long conversation needs a small
/// part of it, a template that loops without end hits it in a second.
const FUEL: u64 = 10_000_000;

/// Bytes of text and lists that a rendering may make, whatever it is given, and for each
/// byte of the messages and variables. Templates copy a message a few times; what makes
/// more is a mistake or an attack, and would take the server's memory.
const MIN_BYTES: usize = 16 << 20;
const BYTES_PER_INPUT_BYTE: usize = 64;
/// What a JSON value counts beside its text.
const BYTES_PER_VALUE: usize = 16;

/// What a caller may tell a template beside the messages.
#[derive(Clone, Debug)]
pub struct ChatTemplateOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, by name: `tools` and `documents` among them.
    pub kwargs: Map<String, serde_json::Value>,
}

impl Default for ChatTemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, kwargs: Map::new() }
    }
}

/// A model's chat template. It comes from the model directory or from the
/// operator, never from a request. What transformers renders of it is the
/// standard: its Jinja2 runs sandboxed, with `trim_blocks` and `lstrip_blocks`,
/// and values behave as Python's.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Map<String, serde_json::Value>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// `special_tokens` are variables: `bos_token` and the like, as text.
    pub(crate) fn new(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters are valid");
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, state, value| match state.auto_escape() {
            AutoEscape::None => {
                let text = value.as_str().map_or_else(|| python::str_of(value).into(), Cow::from);
                // It may go into a variable rather than into the prompt.
                budget::reserve(text.len())?;
                Ok(out.write_str(&text)?)
            }
            _ => minijinja::escape_formatter(out, state, value),
        });
        filters::add_to(&mut environment);
        environment
            .add_template_owned(NAME, source::rewrite(source))
            .map_err(|error| describe(&error))?;
        Ok(Self { environment, special_tokens })
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
        let failure = match self.render_with(messages, options) {
            Ok(text) => return Ok(text),
            Err(Failure::Raised(reason)) => return Err(TextError::InvalidMessages(reason)),
            Err(failure) => failure,
        };
        let because_of_kwargs = !options.kwargs.is_empty() && {
            let without = ChatTemplateOptions { kwargs: Map::new(), ..*options };
            matches!(self.render_with(messages, &without), Ok(_) | Err(Failure::Raised(_)))
        };
        Err(match failure {
            failure if because_of_kwargs => TextError::InvalidTemplateArguments(failure.reason()),
            Failure::Failed(reason) => TextError::TemplateFailed(reason),
            failure => TextError::InvalidMessages(failure.reason()),
        })
    }

    fn render_with(
        &self,
        messages: &[serde_json::Value],
        options: &ChatTemplateOptions,
    ) -> Result<String, Failure> {
        // As transformers passes them: none where there are none, not undefined.
        let mut variables = Map::new();
        variables.insert("tools".to_owned(), serde_json::Value::Null);
        variables.insert("documents".to_owned(), serde_json::Value::Null);
        variables.extend(self.special_tokens.clone());
        variables.extend(options.kwargs.clone());
        variables.insert("messages".to_owned(), messages.into());
        variables.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        let template = self
            .environment
            .get_template(NAME)
            .expect("the environment was made with this template");
        let input = variables.values().map(size).fold(0, usize::saturating_add);
        let most = MIN_BYTES.saturating_add(input.saturating_mul(BYTES_PER_INPUT_BYTE));
        let mut prompt = Prompt { bytes: Vec::new(), most, is_full: false };
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            budget::within(most, || {
                template.render_captured_to(Value::from(Serde(&variables)), &mut prompt).map(drop)
            })
        }));
        match rendered {
            _ if prompt.is_full => Err(Failure::TooLarge(most)),
            Ok(Ok(())) => String::from_utf8(prompt.bytes)
                .map_err(|_| Failure::Failed("it wrote bytes that are no text".to_owned())),
            Ok(Err(error)) => Err(if cause::<budget::TooLarge>(&error).is_some() {
                Failure::TooLarge(most)
            } else if let Some(Raised(message)) = cause(&error) {
                Failure::Raised(message.clone())
            } else {
                Failure::Failed(describe(&error))
            }),
            // A bug of the template engine ends no more than this request.
            Err(_) => Err(Failure::Failed("the template engine panicked".to_owned())),
        }
    }

    /// What goes wrong with conversations of the usual kinds, so that it is
    /// known before the first request: one line for each. Refusing a system
    /// message is a template's right.
    pub(crate) fn faults(&self) -> Vec<String> {
        let message = |role: &str, content: &str| json!({ "role": role, "content": content });
        let (user, again) = (message("user", "Hello!"), message("user", "And now?"));
        let probes = [
            ("one user message", vec![user.clone()]),
            ("a system and a user message", vec![message("system", "Be brief."), user.clone()]),
            ("three turns", vec![user, message("assistant", "Hello."), again]),
        ];
        let faults = probes.into_iter().enumerate().filter_map(|(i, (what, messages))| match self
            .render(&messages, &ChatTemplateOptions::default())
        {
            Err(TextError::InvalidMessages(_)) if i == 1 => None,
            Err(error) => Some(format!("{what}: {error}")),
            Ok(_) => None,
        });
        faults.collect()
    }
}

/// Why there is no prompt.
enum Failure {
    /// The template refused the messages.
    Raised(String),
    /// It made more than so many bytes.
    TooLarge(usize),
    /// The template is at fault.
    Failed(String),
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Self::Raised(reason) | Self::Failed(reason) => reason,
            Self::TooLarge(most) => format!("it would make more than {most} bytes of text"),
        }
    }
}

/// The prompt as it is written, up to a length.
struct Prompt {
    bytes: Vec<u8>,
    most: usize,
    is_full: bool,
}

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Roughly the bytes of a value.
fn size(value: &serde_json::Value) -> usize {
    let inner: usize = match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(size).sum(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + size(value)).sum()
        }
        _ => 0,
    };
    inner + BYTES_PER_VALUE
}

/// What a template raised on purpose.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// The first cause of a type among an error's causes.
fn cause<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>" });
        let tokens = tokens.as_object().expect("an object").clone();
        ChatTemplate::new(source, tokens).expect("the template parses")
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
    fn what_a_template_makes_is_bounded() {
        // Each makes gigabytes with few instructions.
        let sources = [
            "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x|replace('a', n.x ~ 'a') %}{% endfor %}",
            "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x.replace('', 'aaaa') %}{% endfor %}",
            "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x|join(n.x) %}{% endfor %}",
            "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x.join(n.x|list) %}{% endfor %}",
            "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
            "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
            "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|pprint }}",
            "{% set x %}{% for i in range(1000) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}",
            "{% for i in range(1000) %}{% set x = 'a' * 10 ** 8 %}{% endfor %}",
            "{% set x = [1] * 10 ** 8 %}",
            "{% set x = ('a' * 10000)|indent('b' * 10000, first=true) %}{% for i in range(2000) %}{{ x }}{% endfor %}",
            "{% set x = [1]|slice(10 ** 9) %}",
            "{% set x = [1]|batch(10 ** 9, 0) %}",
            "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% set y = x|upper %}{% endfor %}",
            "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% set y = x.upper() %}{% endfor %}",
            "{% for i in range(100000) %}{% set y = range(100000)|list %}{% endfor %}",
        ];
        for source in sources {
            let error = render(source, json!([])).expect_err(source);
            let is_bound = matches!(&error, TextError::InvalidMessages(reason)
                if reason.starts_with("it would make more than 167"));
            assert!(is_bound, "{source}: {error}");
        }
        let raw = format!("{{% for i in range(90000) %}}{}{{% endfor %}}", "a".repeat(1000));
        let error = render(&raw, json!([])).expect_err("90 MB of its own text");
        assert!(matches!(error, TextError::InvalidMessages(_)), "{error}");
    }

    #[test]
    fn the_bound_grows_with_the_messages_and_names_the_arguments() {
        let text = "a".repeat(1 << 20);
        let source = "{% for i in range(24) %}{{ messages[0].content ~ '' }}{% endfor %}";
        let rendered = render(source, json!([{ "content": text.clone() }]));
        assert_eq!(rendered.map(|text| text.len()).expect("it fits"), 24 << 20);
        let kwargs = json!({ "n": 1_000_000_000 });
        let kwargs = kwargs.as_object().expect("an object").clone();
        let options = ChatTemplateOptions { kwargs, ..Default::default() };
        let error = template("{{ 'a' * (n | default(1)) }}").render(&[], &options);
        assert!(matches!(error, Err(TextError::InvalidTemplateArguments(_))), "{error:?}");
    }

    #[test]
    fn operators_keep_their_order() {
        let source = "{{ 1 + 2 * 3 ~ 4 * 5 - 6 }}|{{ 2 * 3 ** 2 * 2 }}|{{ 7 // 2 * 2 }}|\
            {{ -2 * -3 }}|{{ 'ab' * 2 ~ 'c' }}|{{ [1] * 2 }}|{{ 2 * 7 % 4 }}|{{ 7 % 4 * 2 }}|\
            {{ 'a' ~ 1 + 2 }}";
        let failed = render(source, json!([]));
        assert!(matches!(failed, Err(TextError::TemplateFailed(_))), "text and 2 have no sum");
        let source = "{{ (1 + 2 * 3) ~ 4 * 5 }}|{{ 2 * 3 ** 2 * 2 }}|{{ 7 // 2 * 2 }}|\
            {{ -2 * -3 }}|{{ 'ab' * 2 ~ 'c' }}|{{ [1] * 2 }}|{{ 2 * 7 % 4 }}|{{ 7 % 4 * 2 }}";
        let text = render(source, json!([])).expect("it renders");
        assert_eq!(text, "720|36|6|6|ababc|[1, 1]|2|6");
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
    fn a_broken_template_says_where() {
        let broken = ChatTemplate::new("{% for %}", Map::new());
        assert!(broken.expect_err("it does not parse").contains("line 1"));
    }
}
