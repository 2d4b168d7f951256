//! A model's text side: what its directory says of tokens and messages.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sconce_types::TokenId;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{
    ChatTemplateOptions, Detokenizer, TextError,
    chat_template::ChatTemplate,
    detokenizer::{self, ByteTable, Pieces},
    encoder::Encoder,
};

/// What an operator sets instead of the model's own.
#[derive(Clone, Debug, Default)]
pub struct TextConfig {
    /// The chat template's file.
    pub chat_template: Option<PathBuf>,
}

/// How a model's makers would sample from it: what its generation_config.json
/// says. A request's own fields come before these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Keep so many likeliest tokens.
    pub top_k: Option<i64>,
    /// Keep tokens at least so many times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Weakens tokens that were seen.
    pub repetition_penalty: Option<f32>,
}

/// Tokenizer and chat template of a model, shared by all requests.
pub struct TextModel {
    pieces: Arc<Pieces>,
    encoder: Encoder,
    chat_template: Option<ChatTemplate>,
    eos_token_ids: Arc<[TokenId]>,
    sampling_defaults: SamplingDefaults,
}

/// One token's text, for log-probabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// Readable text; bytes that are no character are replaced.
    pub text: String,
    /// The bytes themselves.
    pub bytes: Vec<u8>,
}

impl TextModel {
    /// Reads tokenizer.json, tokenizer_config.json, generation_config.json and
    /// config.json of a directory; only the first must be there.
    ///
    /// # Errors
    /// A file that is missing or does not hold what it should.
    pub fn load(dir: &Path, config: &TextConfig) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let bytes =
            std::fs::read(&path).map_err(|source| TextError::Io { path: path.clone(), source })?;
        let tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| TextError::Invalid { path, reason: error.to_string() })?;
        let tokenizer_config = optional_json(&dir.join("tokenizer_config.json"))?;
        let chat_template = chat_template(dir, config, &tokenizer_config)?;
        let eos_token_ids = eos_token_ids(dir, &tokenizer, &tokenizer_config)?;
        let path = dir.join("generation_config.json");
        let sampling_defaults = match optional_json(&path)? {
            Value::Null => SamplingDefaults::default(),
            fields => serde_json::from_value(fields)
                .map_err(|error| TextError::Invalid { path, reason: error.to_string() })?,
        };
        let encoder = Encoder::new(&tokenizer);
        let table = ByteTable::new(&tokenizer);
        let pieces = Arc::new(Pieces { tokenizer, table });
        Ok(Self { pieces, encoder, chat_template, eos_token_ids, sampling_defaults })
    }

    /// A text side that needs no files: a token for each byte, token 256 as the
    /// end, and a chat template that puts each message on a line.
    #[must_use]
    pub fn bytes() -> Self {
        let tokenizer = Tokenizer::from_bytes(detokenizer::byte_tokenizer())
            .expect("a vocabulary of bytes is a tokenizer");
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        let chat_template =
            ChatTemplate::new(source.to_owned(), None, None).expect("the template has no mistakes");
        let encoder = Encoder::new(&tokenizer);
        let table = ByteTable::new(&tokenizer);
        Self {
            encoder,
            pieces: Arc::new(Pieces { tokenizer, table }),
            chat_template: Some(chat_template),
            eos_token_ids: Arc::new([256]),
            sampling_defaults: SamplingDefaults::default(),
        }
    }

    /// Token ids of a text. Special tokens' own names in the text become those
    /// tokens; `add_special_tokens` adds what the model starts texts with.
    ///
    /// # Errors
    /// The tokenizer refused.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        self.encode_within(text, add_special_tokens, usize::MAX)
    }

    /// The same of a text of so many tokens at most. What a longer one costs goes by the
    /// limit, not by its length.
    ///
    /// # Errors
    /// The tokenizer refused, or there are more tokens.
    pub fn encode_within(
        &self,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<Vec<TokenId>, TextError> {
        self.encoder.encode(&self.pieces.tokenizer, text, add_special_tokens, max_tokens)
    }

    /// Bytes that so many tokens can stand for at most.
    #[must_use]
    pub fn max_bytes(&self, tokens: usize) -> usize {
        self.encoder.max_bytes(tokens)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// The tokenizer refused.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String, TextError> {
        let text = self.pieces.tokenizer.decode(ids, skip_special_tokens);
        text.map_err(|error| TextError::Decode(error.to_string()))
    }

    /// One token's text.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> TokenText {
        self.pieces.token_text(id)
    }

    /// The largest id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let ids = self.pieces.tokenizer.get_vocab(true);
        ids.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The model's end tokens.
    #[must_use]
    pub fn eos_token_ids(&self) -> Arc<[TokenId]> {
        Arc::clone(&self.eos_token_ids)
    }

    /// How the model's makers would sample from it.
    #[must_use]
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.sampling_defaults
    }

    /// Checks that every token has a place in the model's vocabulary.
    ///
    /// # Errors
    /// One has none.
    pub fn check_fits(&self, vocab_size: usize) -> Result<(), TextError> {
        let largest = self.vocab_size().max(1) - 1;
        let largest_token = u32::try_from(largest).expect("token ids are 32 bits");
        let end = self.eos_token_ids.iter().copied().max().unwrap_or(0);
        let largest_token = largest_token.max(end);
        if (largest_token as usize) < vocab_size {
            return Ok(());
        }
        Err(TextError::VocabularyMismatch { largest_token, vocab_size })
    }

    /// Whether [`TextModel::apply_chat_template`] can work.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// The prompt of a conversation: objects with `role` and `content`.
    ///
    /// # Errors
    /// No template, messages that it refuses, or a template that fails.
    pub fn apply_chat_template(
        &self,
        messages: &[Value],
        options: &ChatTemplateOptions,
    ) -> Result<String, TextError> {
        self.chat_template.as_ref().ok_or(TextError::NoChatTemplate)?.render(messages, options)
    }

    /// An incremental detokenizer for what follows `prompt`.
    #[must_use]
    pub fn detokenizer(&self, prompt: &[TokenId], skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces), prompt, skip_special_tokens)
    }
}

fn optional_json(path: &Path) -> Result<Value, TextError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(TextError::Io { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| TextError::Invalid { path: path.to_owned(), reason: error.to_string() })
}

/// The operator's template, else the directory's, else tokenizer_config.json's.
fn chat_template(
    dir: &Path,
    config: &TextConfig,
    tokenizer_config: &Value,
) -> Result<Option<ChatTemplate>, TextError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|source| TextError::Io { path: path.to_owned(), source })
    };
    let own_file = dir.join("chat_template.jinja");
    let (path, source) = if let Some(path) = &config.chat_template {
        (path.clone(), Some(read(path)?))
    } else if own_file.is_file() {
        (own_file.clone(), Some(read(&own_file)?))
    } else {
        let field = &tokenizer_config["chat_template"];
        let named = |name: &str| {
            let templates = field.as_array()?;
            let template = templates.iter().find(|template| template["name"] == name)?;
            template["template"].as_str()
        };
        let source = field.as_str().or_else(|| named("default"));
        (dir.join("tokenizer_config.json"), source.map(ToOwned::to_owned))
    };
    let Some(source) = source else { return Ok(None) };
    let token = |field: &str| special_token(tokenizer_config, field).map(ToOwned::to_owned);
    ChatTemplate::new(source, token("bos_token"), token("eos_token"))
        .map(Some)
        .map_err(|reason| TextError::Invalid { path, reason: format!("chat template: {reason}") })
}

/// A special token in tokenizer_config.json: a string, or an object with one.
fn special_token<'a>(tokenizer_config: &'a Value, field: &str) -> Option<&'a str> {
    let token = &tokenizer_config[field];
    token.as_str().or_else(|| token["content"].as_str())
}

/// What ends a text: generation_config.json's word, else config.json's, else
/// the tokenizer's.
fn eos_token_ids(
    dir: &Path,
    tokenizer: &Tokenizer,
    tokenizer_config: &Value,
) -> Result<Arc<[TokenId]>, TextError> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let ids = match &optional_json(&path)?["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().map(token_id).collect::<Option<Vec<_>>>(),
            id => token_id(id).map(|id| vec![id]),
        };
        return ids.map(Arc::from).ok_or_else(|| TextError::Invalid {
            path,
            reason: "eos_token_id must be a token id or a list of them".to_owned(),
        });
    }
    let token = special_token(tokenizer_config, "eos_token");
    Ok(token.and_then(|token| tokenizer.token_to_id(token)).into_iter().collect())
}

fn token_id(id: &Value) -> Option<TokenId> {
    u32::try_from(id.as_u64()?).ok()
}
