//! Tokenizers, and answers drawn through masks.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce_grammar::{Constraint, Grammar, GrammarConfig, GrammarError, Grammars, Source};
use sconce_text::{TextConfig, TextModel};
use sconce_types::{TenantId, TokenId};
use serde_json::{Value, json};

pub(crate) const TENANT: TenantId = TenantId(0);

/// A tokenizer with what is needed to check masks.
pub(crate) struct Model {
    pub(crate) text: Arc<TextModel>,
    pub(crate) vocab_size: usize,
    pub(crate) grammars: Grammars,
}

impl Model {
    /// A token for each byte, and 300 places for them.
    pub(crate) fn bytes() -> Self {
        Self::with_config(Self::config())
    }

    /// The same with grammars of another configuration.
    pub(crate) fn with_config(config: GrammarConfig) -> Self {
        Self::new(TextModel::bytes(), 300, config)
    }

    pub(crate) fn config() -> GrammarConfig {
        GrammarConfig {
            // Machines that test are busy.
            compile_time: Duration::from_secs(60),
            mask_threads: 1,
            ..GrammarConfig::default()
        }
    }

    /// Byte-level BPE with tokens that cross the bounds of JSON's lexemes, and two end tokens.
    pub(crate) fn bpe() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let tokenizer = bpe_tokenizer();
        let config = json!({ "eos_token": "<|end|>" });
        let generation = json!({ "eos_token_id": [400, 401] });
        let files = [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
            ("generation_config.json", generation),
        ];
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).expect("a file");
        }
        let text = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
        assert_eq!(&*text.eos_token_ids(), [400, 401]);
        Self::new(text, 500, Self::config())
    }

    fn new(text: TextModel, vocab_size: usize, config: GrammarConfig) -> Self {
        let text = Arc::new(text);
        let grammars = Grammars::new(Arc::clone(&text), vocab_size, config);
        Self { text, vocab_size, grammars }
    }

    pub(crate) fn compile(&self, source: &Source) -> Result<Grammar, GrammarError> {
        self.grammars.compile(TENANT, source)
    }

    pub(crate) fn constraint(&self, source: &Source) -> Constraint {
        match self.compile(source) {
            Ok(grammar) => grammar.constraint(),
            Err(error) => panic!("{source:?}: {error}"),
        }
    }

    /// The tokens that may come next.
    pub(crate) fn allowed(&self, constraint: &mut Constraint) -> Vec<TokenId> {
        let mut words = vec![0; self.vocab_size.div_ceil(32)];
        while !constraint.fill_mask(&mut words) {}
        let allows = |token: &u32| words[*token as usize / 32] >> (token % 32) & 1 == 1;
        (0..words.len() as u32 * 32).filter(allows).collect()
    }

    pub(crate) fn is_end(&self, token: TokenId) -> bool {
        self.text.eos_token_ids().contains(&token)
    }

    /// Draws an answer; `None` if it has not ended after so many tokens.
    pub(crate) fn draw(
        &self,
        constraint: &mut Constraint,
        rng: &mut StdRng,
        most: usize,
    ) -> Option<String> {
        let mut tokens = Vec::new();
        while tokens.len() < most {
            let allowed = self.allowed(constraint);
            assert!(!allowed.is_empty(), "nothing may follow: {:?}", constraint.failure());
            let ends: Vec<_> = allowed.iter().copied().filter(|&t| self.is_end(t)).collect();
            if ends.len() == allowed.len() || (!ends.is_empty() && rng.random_bool(0.4)) {
                constraint.accept(ends[rng.random_range(0..ends.len())]);
                return Some(self.text.decode(&tokens, true).expect("it is text"));
            }
            // What closes strings, arrays and objects comes sooner than by chance.
            let closes = |token: &TokenId| {
                let text = self.text.token_text(*token).text;
                !self.is_end(*token) && text.starts_with(['"', ']', '}'])
            };
            let closing: Vec<_> = allowed.iter().copied().filter(closes).collect();
            let others: Vec<_> = allowed.into_iter().filter(|&t| !self.is_end(t)).collect();
            let from = if closing.is_empty() || rng.random_bool(0.6) { &others } else { &closing };
            let token = from[rng.random_range(0..from.len())];
            constraint.accept(token);
            tokens.push(token);
        }
        None
    }

    /// Whether these tokens are allowed one after the other, and then an end.
    pub(crate) fn accepts_tokens(&self, constraint: &mut Constraint, tokens: &[TokenId]) -> bool {
        for &token in tokens {
            if !self.allowed(constraint).contains(&token) {
                return false;
            }
            constraint.accept(token);
        }
        self.allowed(constraint).iter().any(|&token| self.is_end(token))
    }

    /// Whether a text is allowed byte by byte, and then an end.
    pub(crate) fn accepts(&self, source: &Source, text: &str) -> bool {
        self.accepts_tokens(&mut self.constraint(source), &self.bytes_of(text))
    }

    /// A text, a token for each byte.
    pub(crate) fn bytes_of(&self, text: &str) -> Vec<TokenId> {
        text.bytes().map(|byte| self.byte_token(byte)).collect()
    }

    fn byte_token(&self, byte: u8) -> TokenId {
        let is_byte = |id: &TokenId| self.text.token_text(*id).bytes == [byte];
        (0..256).find(is_byte).expect("every byte has a token")
    }
}

pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// GPT-2's stand-ins for bytes.
fn stand_ins() -> Vec<String> {
    let mut next = 0x100;
    let stand_in = |byte: u8| {
        let code = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
            _ => {
                next += 1;
                next - 1
            }
        };
        char::from_u32(code).expect("a character").to_string()
    };
    (0..=255).map(stand_in).collect()
}

fn bpe_tokenizer() -> Value {
    let stand_ins = stand_ins();
    let mut vocab = serde_json::Map::new();
    for (id, text) in stand_ins.iter().enumerate() {
        vocab.insert(text.clone(), id.into());
    }
    let mut merges = Vec::new();
    let mut id = 256;
    for word in [
        "\":", "\",\"", "{\"", "\"}", "},{", "null", "true", "false", " the", "name", "[\"", "\\n",
        "12", "}}", "é", "🦖", ", ", "\": ",
    ] {
        let mut so_far = String::new();
        for byte in word.bytes() {
            let next = &stand_ins[usize::from(byte)];
            if so_far.is_empty() {
                so_far.push_str(next);
                continue;
            }
            let mut merge = String::new();
            let _ = write!(merge, "{so_far} {next}");
            so_far.push_str(next);
            if !vocab.contains_key(&so_far) {
                vocab.insert(so_far.clone(), id.into());
                merges.push(merge);
                id += 1;
            }
        }
    }
    assert!(id < 400, "{id}");
    let mut special = |id: u32, content: &str| {
        vocab.insert(content.to_owned(), id.into());
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let added = [special(400, "<|end|>"), special(401, "<|eot_id|>"), special(402, "<|tool|>")];
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })
}
