//! Everything that knows text: tokenizer, chat template, incremental
//! detokenizer, stop strings, calls and reasoning in an answer. The engine and
//! what is below it know token ids only.

mod answer;
mod byte_tokenizer;
mod chat_template;
mod detokenizer;
mod encoder;
mod ends;
mod error;
mod longest_token;
mod stop_strings;
mod text_model;
mod token_table;
mod tokenizer_file;
mod window;

pub use answer::{AnswerEvent, AnswerParser, AnswerTool, Beside, ReasoningFormat, ToolFormat};
pub use chat_template::ChatTemplateOptions;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop_strings::{MAX_STOP_BYTES, MAX_STOPS, StopError, StopStrings};
pub use text_model::{SamplingDefaults, TextConfig, TextModel, TokenText};
