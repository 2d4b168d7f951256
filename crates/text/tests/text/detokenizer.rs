//! The detokenizer against `tokenizers`' own decoders, for every prefix of random token
//! sequences.

use std::{collections::HashMap, str::FromStr as _, sync::LazyLock};

use proptest::{prelude::*, sample::Index};
use sconce_text::{TextConfig, TextModel};
use serde_json::{Map, Value, json};
use tokenizers::{
    Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{
        byte_level::ByteLevel,
        metaspace::{Metaspace, PrependScheme},
    },
};

const TEXT: &str = "The quick brown fox jumps over the lazy dog, and then the other dogs. \
    Où est la bibliothèque? Der Fuchs springt über den Zaun. Съешь ещё этих мягких \
    французских булок. 吾輩は猫である。名前はまだ無い。 한국어 글자 🦖🦖 👩‍👩‍👧 1234 567. \
    fn main() { println!(\"hello\"); }\n\n\tlet x = [1, 2, 3];\n";

/// What a byte-fallback vocabulary begins with: three special tokens, then the bytes.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];
const FIRST_BYTE: u32 = 3;

/// Each model with a second tokenizer, which is the reference.
struct Pair {
    model: TextModel,
    reference: Tokenizer,
    /// Token ids of the bytes 0 to 255.
    bytes: Option<Vec<u32>>,
    size: u32,
    /// The decoder takes a space from the start of the text.
    strips: bool,
    /// The decoder takes all spaces from the first token.
    first_word_has_no_space: bool,
}

impl Pair {
    fn new(tokenizer: &Value, bytes: Option<Vec<u32>>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
        let model = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
        let reference = Tokenizer::from_str(&tokenizer.to_string()).expect("it loads");
        let size = u32::try_from(model.vocab_size()).expect("small");
        let (strips, first_word_has_no_space) = (false, false);
        Self { model, reference, bytes, size, strips, first_word_has_no_space }
    }

    fn decode(&self, tokens: &[u32], skip: bool) -> String {
        self.reference.decode(tokens, skip).expect("it decodes")
    }
}

/// A trained BPE as JSON.
fn train(pre_tokenizer: impl Into<tokenizers::PreTokenizerWrapper>, alphabet: bool) -> Value {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let mut trainer = BpeTrainer::builder().vocab_size(600).show_progress(false);
    if alphabet {
        trainer = trainer.initial_alphabet(ByteLevel::alphabet().into_iter().collect());
    }
    let mut trainer = TrainerWrapper::BpeTrainer(trainer.build());
    tokenizer.train(&mut trainer, std::iter::once(TEXT)).expect("it trains");
    serde_json::from_str(&tokenizer.to_string(false).expect("JSON")).expect("JSON")
}

fn special(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false,
    })
}

fn byte_level() -> Pair {
    let mut tokenizer = train(ByteLevel::new(false, true, true), true);
    tokenizer["decoder"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let len = tokenizer["model"]["vocab"].as_object().expect("a vocabulary").len();
    tokenizer["added_tokens"] =
        json!([special(len, "<|im_start|>"), special(len + 1, "<|im_end|>")]);
    let ids: HashMap<char, u32> = tokenizer["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .iter()
        .filter(|(token, _)| token.chars().count() == 1)
        .map(|(token, id)| {
            let id = u32::try_from(id.as_u64().expect("an id")).expect("small");
            (token.chars().next().expect("a character"), id)
        })
        .collect();
    let bytes = (0..=255).map(|byte| ids[&stand_in(byte)]).collect();
    Pair::new(&tokenizer, Some(bytes))
}

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(0x100 + u32::try_from(rank).expect("below 256")).expect("a character")
}

/// A trained vocabulary with special tokens and bytes before it, and a decoder.
fn sentencepiece(decoder: &Value) -> Pair {
    let mut tokenizer = train(Metaspace::new('▁', PrependScheme::Always, true), false);
    let trained = tokenizer["model"]["vocab"].as_object().expect("a vocabulary").clone();
    let mut vocab = Map::new();
    let names = SPECIALS.iter().map(|&name| name.to_owned());
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    for token in names.chain(bytes).chain(trained.into_iter().map(|(token, _)| token)) {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    }
    tokenizer["model"]["vocab"] = vocab.into();
    tokenizer["model"]["unk_token"] = json!("<unk>");
    tokenizer["model"]["byte_fallback"] = json!(true);
    tokenizer["added_tokens"] =
        SPECIALS.iter().enumerate().map(|(id, name)| special(id, name)).collect();
    tokenizer["decoder"] = decoder.clone();
    Pair::new(&tokenizer, Some((FIRST_BYTE..FIRST_BYTE + 256).collect()))
}

fn llama() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] })
}

fn metaspace_with_bytes() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false },
        { "type": "ByteFallback" }, { "type": "Fuse" },
    ] })
}

fn metaspace() -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true })
}

/// Tokens of a random kind: any, the bytes of a character, a byte, a special token.
#[derive(Clone, Debug)]
enum Piece {
    Any(Index),
    Char(char),
    Byte(u8),
    Special(Index),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let chars = vec!['é', '🦖', '한', 'Ж', '\n', 'a', ' ', '𝔸', '\u{fffd}'];
    let piece = prop_oneof![
        8 => any::<Index>().prop_map(Piece::Any),
        4 => prop::sample::select(chars).prop_map(Piece::Char),
        2 => any::<u8>().prop_map(Piece::Byte),
        1 => any::<Index>().prop_map(Piece::Special),
    ];
    prop::collection::vec(piece, 1..8)
}

impl Pair {
    fn tokens(&self, pieces: &[Piece]) -> Vec<u32> {
        let mut specials: Vec<u32> =
            self.reference.get_added_tokens_decoder().keys().copied().collect();
        specials.sort_unstable();
        let mut tokens = Vec::new();
        for piece in pieces {
            match (piece, &self.bytes) {
                (Piece::Char(c), Some(bytes)) => {
                    let mut utf8 = [0; 4];
                    tokens.extend(c.encode_utf8(&mut utf8).bytes().map(|b| bytes[usize::from(b)]));
                }
                (Piece::Byte(byte), Some(bytes)) => tokens.push(bytes[usize::from(*byte)]),
                (Piece::Any(at), _) => {
                    tokens.push(u32::try_from(at.index(self.size as usize)).expect("small"));
                }
                (Piece::Special(at), _) => tokens.push(*at.get(&specials)),
                (_, None) => {}
            }
        }
        tokens
    }

    /// What tokens come to, by this test's own decoder for vocabularies with byte
    /// tokens, and by `tokenizers` for others. They are the same, but for runs of bytes
    /// that hold both valid characters and invalid bytes.
    fn expected(&self, tokens: &[u32], skip: bool) -> String {
        let theirs = self.decode(tokens, skip);
        if !self.has_byte_tokens() {
            return theirs;
        }
        let mut text = String::new();
        let (mut run, mut mixed) = (Vec::new(), false);
        let mut end_run = |run: &mut Vec<u8>, text: &mut String| {
            let before = text.len();
            let (mut valid, mut invalid) = (false, false);
            for chunk in run.utf8_chunks() {
                text.push_str(chunk.valid());
                chunk.invalid().iter().for_each(|_| text.push('\u{fffd}'));
                valid |= !chunk.valid().is_empty();
                invalid |= !chunk.invalid().is_empty();
            }
            mixed |= valid && invalid;
            run.clear();
            text.len() > before
        };
        let mut is_first = true;
        for &token in tokens {
            let name = self.reference.id_to_token(token).expect("a token");
            if skip && SPECIALS.contains(&name.as_str()) {
                continue;
            }
            if let Some(byte) =
                token.checked_sub(FIRST_BYTE).and_then(|byte| u8::try_from(byte).ok())
            {
                run.push(byte);
            } else {
                end_run(&mut run, &mut text);
                let space = if is_first && self.first_word_has_no_space { "" } else { " " };
                text.push_str(&name.replace('▁', space));
            }
            is_first = false;
        }
        end_run(&mut run, &mut text);
        if self.strips {
            text = text.strip_prefix(' ').map(ToOwned::to_owned).unwrap_or(text);
        }
        if !mixed {
            assert_eq!(text, theirs, "{tokens:?}");
        }
        text
    }

    /// Every prefix of the tokens, in pieces, is what all of them come to.
    fn check_prefixes(&self, tokens: &[u32], skip: bool) -> Result<(), TestCaseError> {
        let mut detokenizer = self.model.detokenizer(&[], skip);
        let mut text = String::new();
        for len in 1..=tokens.len() {
            detokenizer.push(tokens[len - 1], &mut text);
            let mut whole = text.clone();
            detokenizer.clone().finish(&mut whole);
            let expected = self.expected(&tokens[..len], skip);
            prop_assert_eq!(&whole, &expected, "{:?}", &tokens[..len]);
            prop_assert!(whole.len() - text.len() <= 9, "more is held back than one character");
            prop_assert_eq!(self.model.decode(&tokens[..len], skip).expect("it decodes"), expected);
        }
        Ok(())
    }

    /// What follows a prompt is what all tokens come to without the prompt's own text; a
    /// character that begins in the prompt is the completion's.
    fn check_prompt(&self, tokens: &[u32], prompt: usize, skip: bool) -> Result<(), TestCaseError> {
        let (prompt, rest) = tokens.split_at(prompt);
        let mut before = String::new();
        let mut echoing = self.model.detokenizer(&[], skip);
        prompt.iter().for_each(|&token| echoing.push(token, &mut before));
        let mut unfinished = String::new();
        echoing.clone().finish(&mut unfinished);
        let (mut text, mut echoed) = (String::new(), before.clone());
        let mut detokenizer = self.model.detokenizer(prompt, skip);
        for &token in rest {
            detokenizer.push(token, &mut text);
            echoing.push(token, &mut echoed);
        }
        detokenizer.finish(&mut text);
        echoing.finish(&mut echoed);
        let whole = self.expected(tokens, skip);
        prop_assert_eq!(&echoed, &whole);
        let after = whole.strip_prefix(&before).expect("the prompt's text comes first");
        // The prompt's own invalid bytes are not shown again.
        let theirs = after.strip_suffix(text.as_str());
        let theirs = theirs.ok_or_else(|| TestCaseError::fail(format!("{text:?} of {after:?}")))?;
        prop_assert!(unfinished.starts_with(theirs), "{text:?} of {after:?}");
        Ok(())
    }

    fn has_byte_tokens(&self) -> bool {
        self.bytes.is_some() && self.reference.token_to_id("<0x00>").is_some()
    }
}

static BYTE_LEVEL: LazyLock<Pair> = LazyLock::new(byte_level);
static LLAMA: LazyLock<Pair> = LazyLock::new(|| Pair { strips: true, ..sentencepiece(&llama()) });
static METASPACE: LazyLock<Pair> = LazyLock::new(|| Pair {
    first_word_has_no_space: true,
    ..sentencepiece(&metaspace_with_bytes())
});
/// Without byte fallback, tokens like `<0x41>` are text.
static UNIGRAM: LazyLock<Pair> = LazyLock::new(|| {
    let mut pair = sentencepiece(&metaspace());
    pair.bytes = None;
    pair
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn byte_level_text_in_pieces_is_the_whole(pieces in pieces(), prompt: Index, skip: bool) {
        check(&BYTE_LEVEL, &pieces, prompt, skip)?;
    }

    #[test]
    fn byte_fallback_text_in_pieces_is_the_whole(pieces in pieces(), prompt: Index, skip: bool) {
        check(&LLAMA, &pieces, prompt, skip)?;
    }

    #[test]
    fn metaspace_text_with_bytes_in_pieces_is_the_whole(
        pieces in pieces(), prompt: Index, skip: bool,
    ) {
        check(&METASPACE, &pieces, prompt, skip)?;
    }

    #[test]
    fn metaspace_text_in_pieces_is_the_whole(pieces in pieces(), prompt: Index, skip: bool) {
        check(&UNIGRAM, &pieces, prompt, skip)?;
    }
}

fn check(pair: &Pair, pieces: &[Piece], prompt: Index, skip: bool) -> Result<(), TestCaseError> {
    let tokens = pair.tokens(pieces);
    pair.check_prefixes(&tokens, skip)?;
    pair.check_prompt(&tokens, prompt.index(tokens.len() + 1), skip)
}
