//! From messages to a prompt.

mod arguments;
mod characters;
mod filters;
mod generator;
mod json;
mod methods;
mod percent;
mod python;
mod source;
mod strftime;

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use minijinja::{AutoEscape, Environment, Error, Value, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, json};

use crate::TextError;

/// Instructions that a template may run; a long conversation needs a small
/// part of it, a template that loops without end hits it in a second.
const FUEL: u64 = 10_000_000;

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
        let result = self.render_with(messages, options);
        let Err(TextError::TemplateFailed(reason)) = result else { return result };
        if !options.kwargs.is_empty() {
            let without = ChatTemplateOptions { kwargs: Map::new(), ..*options };
            if !matches!(self.render_with(messages, &without), Err(TextError::TemplateFailed(_))) {
                return Err(TextError::InvalidTemplateArguments(reason));
            }
        }
        Err(TextError::TemplateFailed(reason))
    }

    fn render_with(
        &self,
        messages: &[serde_json::Value],
        options: &ChatTemplateOptions,
    ) -> Result<String, TextError> {
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
        let rendered =
            catch_unwind(AssertUnwindSafe(|| template.render(Value::from(Serde(&variables)))));
        match rendered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(match refusal(&error) {
                Some(reason) => TextError::InvalidMessages(reason),
                None => TextError::TemplateFailed(describe(&error)),
            }),
            // A bug of the template engine ends no more than this request.
            Err(_) => Err(TextError::TemplateFailed("the template engine panicked".to_owned())),
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

/// What a template raised on purpose.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
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
