//! Answers to conversations: in parts, and as a type.

use std::any::type_name;

use schemars::JsonSchema;
use sconce_server::{Answer, Answered, ChatRequest, Finish, GrammarError, block_on};
use serde::de::DeserializeOwned;

use crate::{Error, Sconce, schema_of};

/// Why there is no answer of a type.
#[derive(Debug, thiserror::Error)]
pub enum ChatAsError {
    /// An answer cannot be held to the type's schema; nothing was generated.
    #[error("answers cannot be held to the schema of {type_name}: {reason}")]
    Schema {
        /// The type.
        type_name: &'static str,
        /// What of the schema is not supported, and where.
        reason: GrammarError,
    },
    /// The request was refused, or failed.
    #[error(transparent)]
    Chat(#[from] Error),
    /// The answer had all tokens that it may have before it was whole.
    #[error(
        "the answer was cut after {max_tokens} tokens, the request's max_tokens, before it was a \
         whole {type_name}: {text:?}"
    )]
    Cut {
        /// The type.
        type_name: &'static str,
        /// The request's `max_tokens`.
        max_tokens: u32,
        /// The answer so far.
        text: String,
    },
    /// The type does not read what its own schema allows, such as a number that is too large.
    #[error("the answer {text:?} is no {type_name}: {source}")]
    Mismatch {
        /// The type.
        type_name: &'static str,
        /// The answer.
        text: String,
        /// What the type says of it.
        source: serde_json::Error,
    },
}

impl Sconce {
    /// Answers a conversation, in which the model may call tools. The answer is a
    /// `futures::Stream` of its parts; [`Answer::blocking_next`] and [`Answer::blocking_whole`]
    /// are for threads without an async runtime. Dropping it cancels the request.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use sconce::{AnswerPart, ChatRequest, Message, SamplingParams, Tool};
    ///
    /// # let sconce = sconce::Sconce::builder("smollm2-135m-instruct").start()?;
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Place {
    ///     city: String,
    /// }
    ///
    /// let weather = Tool::new("weather", "The weather in a city", sconce::schema_of::<Place>());
    /// let params = SamplingParams { max_tokens: 256, ..Default::default() };
    /// let request = ChatRequest::new([Message::user("Do I need an umbrella in Rome?")], params)
    ///     .tools([weather]);
    /// let mut answer = sconce.answer(&request)?;
    /// while let Some(part) = answer.blocking_next() {
    ///     match part? {
    ///         AnswerPart::Text(text) => print!("{text}"),
    ///         AnswerPart::Reasoning(_) => {}
    ///         AnswerPart::Call(call) => println!("{}", call.parse::<Place>()?.city),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Templating, tokenizing and the compilation of a schema that was not seen before happen
    /// on this thread before it returns: some milliseconds, and a second at most.
    ///
    /// # Errors
    /// What cannot run, or not now. A model that makes embeddings.
    pub fn answer(&self, request: &ChatRequest) -> Result<Answer, Error> {
        self.check_generates()?;
        Ok(self.generator().answer(request)?)
    }

    /// Answers a conversation with a value of a type: a grammar of the type's schema leaves the
    /// model no other JSON. The model is not told the schema; what is wanted of it belongs in
    /// the conversation.
    ///
    /// ```no_run
    /// # async fn of(sconce: sconce::Sconce) -> Result<(), sconce::ChatAsError> {
    /// use sconce::{ChatRequest, Message, SamplingParams};
    ///
    /// #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    /// struct City {
    ///     name: String,
    ///     country: Option<String>,
    ///     population: u64,
    /// }
    ///
    /// let question = "The largest city of Japan: its name, country and population, as JSON.";
    /// let params = SamplingParams { max_tokens: 128, temperature: 0.0, ..Default::default() };
    /// let request = ChatRequest::new([Message::user(question)], params);
    /// let city: City = sconce.chat_as(&request).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A type whose schema cannot be held to, before anything is generated; a request that is
    /// refused or fails; an answer that `max_tokens` cut, with its text so far.
    pub async fn chat_as<T>(&self, request: &ChatRequest) -> Result<T, ChatAsError>
    where
        T: JsonSchema + DeserializeOwned,
    {
        let request = request.clone().json_schema(schema_of::<T>());
        let max_tokens = request.params.max_tokens;
        let answer = self.answer(&request).map_err(|error| match error {
            Error::Form { reason, .. } => {
                ChatAsError::Schema { type_name: type_name::<T>(), reason }
            }
            other => other.into(),
        })?;
        read(answer.whole().await.map_err(Error::from)?, max_tokens)
    }

    /// [`Sconce::chat_as`] on a thread outside any async runtime.
    ///
    /// # Errors
    /// As [`Sconce::chat_as`].
    pub fn blocking_chat_as<T>(&self, request: &ChatRequest) -> Result<T, ChatAsError>
    where
        T: JsonSchema + DeserializeOwned,
    {
        block_on(self.chat_as(request))
    }
}

fn read<T: DeserializeOwned>(answered: Answered, max_tokens: u32) -> Result<T, ChatAsError> {
    let Answered { text, finish, .. } = answered;
    let type_name = type_name::<T>();
    match serde_json::from_str(&text) {
        // Nothing can follow one of these; a number may have been cut.
        Ok(value) if finish != Finish::Length || text.ends_with(['}', ']', '"']) => Ok(value),
        Ok(_) => Err(ChatAsError::Cut { type_name, max_tokens, text }),
        Err(_) if finish == Finish::Length => Err(ChatAsError::Cut { type_name, max_tokens, text }),
        Err(source) => Err(ChatAsError::Mismatch { type_name, text, source }),
    }
}
