//! A model's text side: what its directory says of tokens and messages.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sconce_types::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::{
    ChatTemplateOptions, Detokenizer, TextError, byte_tokenizer::byte_tokenizer,
    chat_template::ChatTemplate, detokenizer::Pieces, encoder::Encoder, ends::eos_token_ids,
    tokenizer_file,
};

/// Bytes of a chat template's file; the longest known ones have some twenty thousand.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Bytes that a token stands for in most texts; where they are more, a longer piece of a text
/// is looked at.
const TRUNCATED_TOKEN_BYTES: usize = 8;

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

/// What one token adds to a text, a space before it included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// Readable text; bytes that are no character are replaced.
    pub text: String,
    /// The bytes themselves, which may be a part of a character.
    pub bytes: Vec<u8>,
}

impl TextModel {
    /// Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json,
    /// chat_template.jinja or .json, generation_config.json and config.json of a
    /// directory; only the first must be there. Of tokenizer.json, `truncation` and
    /// `padding` are left out: they were for batches in training, and a prompt is taken
    /// as it is.
    ///
    /// # Errors
    /// A file that is missing or does not hold what it should.
    pub fn load(dir: &Path, config: &TextConfig) -> Result<Self, TextError> {
        let tokenizer = tokenizer_file::load(&dir.join("tokenizer.json"))?;
        let tokenizer_config = optional_json(&dir.join("tokenizer_config.json"))?;
        let chat_template = chat_template(dir, config, &tokenizer_config)?;
        let eos_token_ids =
            eos_token_ids(dir, &tokenizer, &tokenizer_config, chat_template.as_ref())?;
        let path = dir.join("generation_config.json");
        let sampling_defaults = match optional_json(&path)? {
            Value::Null => SamplingDefaults::default(),
            fields => serde_json::from_value(fields)
                .map_err(|error| TextError::Invalid { path, reason: error.to_string() })?,
        };
        let encoder = Encoder::new(&tokenizer);
        let pieces = Arc::new(Pieces::new(tokenizer));
        Ok(Self { pieces, encoder, chat_template, eos_token_ids, sampling_defaults })
    }

    /// A text side that needs no files: a token for each byte, token 256 as the
    /// end, and a chat template that puts each message on a line.
    #[must_use]
    pub fn bytes() -> Self {
        let tokenizer =
            Tokenizer::from_bytes(byte_tokenizer()).expect("a vocabulary of bytes is a tokenizer");
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        let chat_template =
            ChatTemplate::new(source, Map::new()).expect("the template has no mistakes");
        Self {
            encoder: Encoder::new(&tokenizer),
            pieces: Arc::new(Pieces::new(tokenizer)),
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

    /// The first tokens of a text, so many at most, with what the model puts around texts
    /// among them: what stands at the end is kept. A long text is tokenized no further than
    /// needed, up to a space, so the tokenizer must split texts into words there.
    ///
    /// # Errors
    /// The tokenizer refused.
    pub fn encode_truncated(
        &self,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<Vec<TokenId>, TextError> {
        let mut bytes = max_tokens.saturating_mul(TRUNCATED_TOKEN_BYTES);
        loop {
            let piece = match text.get(text.ceil_char_boundary(bytes)..) {
                Some(rest) => {
                    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                    &text[..text.len() - rest.len() + end]
                }
                None => text,
            };
            let tokens = self.encode(piece, false)?;
            if tokens.len() < max_tokens && piece.len() < text.len() {
                bytes = bytes.saturating_mul(4);
                continue;
            }
            if !add_special_tokens {
                return Ok(tokens.into_iter().take(max_tokens).collect());
            }
            // What stands around a text is the same around any.
            let (around, word) = (self.encode("a", true)?, self.encode("a", false)?);
            let at = around.windows(word.len().max(1)).position(|ids| ids == word);
            let (before, after) = around.split_at(at.unwrap_or(around.len()));
            let after = after.get(word.len()..).unwrap_or_default();
            let room = max_tokens.saturating_sub(before.len() + after.len());
            let tokens = &tokens[..tokens.len().min(room)];
            let mut ids = [before, tokens, after].concat();
            ids.truncate(max_tokens);
            return Ok(ids);
        }
    }

    /// Bytes that so many tokens can stand for at most.
    #[must_use]
    pub fn max_bytes(&self, tokens: usize) -> usize {
        self.encoder.max_bytes(tokens)
    }

    /// The text of token ids, which is that of a [`Detokenizer`].
    ///
    /// # Errors
    /// The tokenizer refused.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String, TextError> {
        if self.pieces.table.is_none() {
            return self.pieces.decode(ids, skip_special_tokens);
        }
        let mut detokenizer = self.detokenizer(&[], skip_special_tokens);
        let mut text = String::new();
        ids.iter().for_each(|&id| detokenizer.push(id, &mut text));
        detokenizer.finish(&mut text);
        Ok(text)
    }

    /// What one token adds to a text.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> TokenText {
        self.pieces.token_text(id)
    }

    /// A token's own string in the vocabulary; `None` for an id without a token.
    #[must_use]
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.pieces.tokenizer.id_to_token(id)
    }

    /// Whether a token is left out where special tokens are skipped.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.is_shown(id, false) && !self.pieces.is_shown(id, true)
    }

    /// The special tokens that `is_wanted` says yes to, by their text.
    #[must_use]
    pub fn special_tokens(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<TokenId> {
        let added = self.pieces.tokenizer.get_added_tokens_decoder();
        let wanted = added.iter().filter(|(_, token)| token.special && is_wanted(&token.content));
        let mut ids: Vec<TokenId> = wanted.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// The chat template's source; empty if there is none.
    #[must_use]
    pub fn chat_template_source(&self) -> String {
        self.chat_template.as_ref().map(ChatTemplate::source).unwrap_or_default()
    }

    /// Whether the chat template has a place for tools.
    #[must_use]
    pub fn takes_tools(&self) -> bool {
        self.chat_template_source().contains("tools")
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

    /// What goes wrong with the chat template and conversations of the usual
    /// kinds, one line for each.
    #[must_use]
    pub fn chat_template_faults(&self) -> Vec<String> {
        self.chat_template.as_ref().map(ChatTemplate::faults).unwrap_or_default()
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

pub(crate) fn optional_json(path: &Path) -> Result<Value, TextError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(TextError::Io { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| TextError::Invalid { path: path.to_owned(), reason: error.to_string() })
}

/// The operator's template, else the directory's, else tokenizer_config.json's,
/// else what a processor had before its template was a file of its own.
fn chat_template(
    dir: &Path,
    config: &TextConfig,
    tokenizer_config: &Value,
) -> Result<Option<ChatTemplate>, TextError> {
    let own_file = dir.join("chat_template.jinja");
    let (path, source) = if let Some(path) = &config.chat_template {
        (path.clone(), read_template(path)?)
    } else if own_file.is_file() {
        let source = read_template(&own_file)?;
        (own_file, source)
    } else if let Some(source) = template_of(&tokenizer_config["chat_template"]) {
        (dir.join("tokenizer_config.json"), source.to_owned())
    } else {
        let path = dir.join("chat_template.json");
        match template_of(&optional_json(&path)?["chat_template"]) {
            Some(source) => (path.clone(), source.to_owned()),
            None => return Ok(None),
        }
    };
    ChatTemplate::new(&source, special_tokens(dir, tokenizer_config)?)
        .map(Some)
        .map_err(|reason| TextError::Invalid { path, reason: format!("chat template: {reason}") })
}

/// Reads a template's file, no further than a template can be long: it may be a device.
fn read_template(path: &Path) -> Result<String, TextError> {
    let io = |source| TextError::Io { path: path.to_owned(), source };
    let mut source = String::new();
    let mut file = std::fs::File::open(path).map_err(io)?.take(MAX_TEMPLATE_BYTES + 1);
    file.read_to_string(&mut source).map_err(io)?;
    if source.len() as u64 > MAX_TEMPLATE_BYTES {
        let reason = format!("chat template: the file has more than {MAX_TEMPLATE_BYTES} bytes");
        return Err(TextError::Invalid { path: path.to_owned(), reason });
    }
    Ok(source)
}

/// A template, or of several with names the default one.
fn template_of(field: &Value) -> Option<&str> {
    let named = |name: &str| {
        let templates = field.as_array()?;
        let template = templates.iter().find(|template| template["name"] == name)?;
        template["template"].as_str()
    };
    field.as_str().or_else(|| field["default"].as_str()).or_else(|| named("default"))
}

/// The special tokens that templates see, by name, as transformers finds them:
/// special_tokens_map.json counts where tokenizer_config.json is of the time
/// before it listed added tokens itself.
fn special_tokens(dir: &Path, tokenizer_config: &Value) -> Result<Map<String, Value>, TextError> {
    let mut tokens = Map::new();
    let mut add = |fields: &Value| {
        for (name, token) in fields.as_object().into_iter().flatten() {
            let named = name.ends_with("_token");
            let text = token.as_str().or_else(|| token["content"].as_str());
            if let Some(text) = text.filter(|_| named) {
                tokens.insert(name.clone(), text.into());
            }
        }
    };
    let mut fields = vec![tokenizer_config.clone()];
    if tokenizer_config["added_tokens_decoder"].is_null() {
        fields.push(optional_json(&dir.join("special_tokens_map.json"))?);
    }
    for fields in fields {
        add(&fields);
        add(&fields["extra_special_tokens"]);
    }
    Ok(tokens)
}

/// A special token in tokenizer_config.json: a string, or an object with one.
pub(crate) fn special_token<'a>(tokenizer_config: &'a Value, field: &str) -> Option<&'a str> {
    let token = &tokenizer_config[field];
    token.as_str().or_else(|| token["content"].as_str())
}
