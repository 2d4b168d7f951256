//! Which tokens end an answer.

use std::{path::Path, sync::Arc};

use sconce_types::TokenId;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::{
    ChatTemplateOptions, TextError,
    chat_template::ChatTemplate,
    text_model::{optional_json, special_token},
};

/// Names of tokens that end a turn, where a template writes them.
const END_OF_TURN: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endofturn|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<EOT>",
];
/// The end of an answer in formats where [`MESSAGE_END`] ends one of its several messages.
const ANSWER_END: &str = "<|return|>";
const MESSAGE_END: &str = "<|end|>";

/// The assistant's message in a probe; no template contains this text.
const PROBE: &str = "Qzx7answer7xzQ";

/// Every token that a file of the model names as an end, in the order of
/// generation_config.json, config.json, tokenizer_config.json, special_tokens_map.json,
/// and those that the chat template ends turns with. Makers name the end of a text in
/// one file and that of a turn in another, so none of them replaces the others.
pub(crate) fn eos_token_ids(
    dir: &Path,
    tokenizer: &Tokenizer,
    tokenizer_config: &Value,
    chat_template: Option<&ChatTemplate>,
) -> Result<Arc<[TokenId]>, TextError> {
    let mut ends = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let ids = match &optional_json(&path)?["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().map(token_id).collect::<Option<Vec<_>>>(),
            id => token_id(id).map(|id| vec![id]),
        };
        ends.extend(ids.ok_or_else(|| TextError::Invalid {
            path,
            reason: "eos_token_id must be a token id or a list of them".to_owned(),
        })?);
    }
    let map = optional_json(&dir.join("special_tokens_map.json"))?;
    let named = [tokenizer_config, &map].map(|file| special_token(file, "eos_token"));
    ends.extend(named.into_iter().flatten().filter_map(|token| tokenizer.token_to_id(token)));
    if let Some(template) = chat_template {
        ends.extend(ends_of_turns(tokenizer, template));
    }
    let mut seen = std::collections::HashSet::new();
    ends.retain(|&id| seen.insert(id));
    Ok(ends.into())
}

fn token_id(id: &Value) -> Option<TokenId> {
    u32::try_from(id.as_u64()?).ok()
}

/// The special tokens that a template writes after an assistant's message, or that are
/// known to end turns and stand in it.
fn ends_of_turns(tokenizer: &Tokenizer, template: &ChatTemplate) -> Vec<TokenId> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = |token: &str| {
        let id = tokenizer.token_to_id(token)?;
        added.get(&id).is_some_and(|added| added.special).then_some(id)
    };
    let source = template.source();
    let is_message_end =
        |name: &str| name == MESSAGE_END && tokenizer.token_to_id(ANSWER_END).is_some();
    let known = END_OF_TURN.iter().filter(|name| source.contains(**name) && !is_message_end(name));
    let mut ends: Vec<TokenId> = known.filter_map(|name| special(name)).collect();
    let messages = [
        json!({ "role": "user", "content": "?" }),
        json!({ "role": "assistant", "content": PROBE }),
    ];
    let options = ChatTemplateOptions { add_generation_prompt: false, ..Default::default() };
    // A template that refuses this conversation shows no end token.
    let rendered = template.render(&messages, &options).unwrap_or_default();
    if let Some((_, after)) = rendered.rsplit_once(PROBE) {
        let after = after.trim_start();
        let next = added.values().filter(|token| {
            token.special && !token.content.is_empty() && after.starts_with(&*token.content)
        });
        ends.extend(
            next.max_by_key(|token| token.content.len()).and_then(|token| special(&token.content)),
        );
    }
    ends
}
