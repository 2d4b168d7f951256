//! What becomes of an encoder's hidden states, as sentence-transformers writes it down:
//! modules.json, the pooling's config.json, sentence_bert_config.json.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    ModelError,
    config::{Fields, MAX_SIZE},
    json,
};

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, those of special tokens included.
    Mean,
    /// The first one, of the token that begins the text.
    Cls,
}

/// From hidden states to an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentenceConfig {
    /// How a text's hidden states become one vector.
    pub pooling: Pooling,
    /// Whether that is scaled to length 1.
    pub normalize: bool,
    /// Tokens of a text, if fewer than the encoder has positions for.
    pub max_seq_length: Option<usize>,
    /// Whether the first numbers of an embedding are one too (Kusupati et al., 2022), and how
    /// many of them: any if the list is empty.
    pub matryoshka: Option<Vec<usize>>,
}

impl SentenceConfig {
    /// Reads the files that there are; `config` is config.json. Without modules.json, the
    /// mean as it is: what sentence-transformers takes there.
    ///
    /// # Errors
    /// An unreadable file, a module or a pooling that is not computed here.
    pub(crate) fn read(dir: &Path, config: &Fields<'_>) -> Result<Self, ModelError> {
        let (mut pooling, mut normalize) = (Pooling::Mean, false);
        let path = dir.join("modules.json");
        if path.is_file() {
            let modules: Vec<Map<String, Value>> = json::read(&path)?;
            for module in &modules {
                let field = |name: &str| module.get(name).and_then(Value::as_str);
                let kind = field("type").unwrap_or_default();
                match kind.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => {}
                    "Pooling" => {
                        let folder = field("path").unwrap_or("1_Pooling");
                        pooling = read_pooling(&dir.join(folder).join("config.json"))?;
                    }
                    "Normalize" => normalize = true,
                    _ => {
                        let reason = format!(
                            "the module {kind:?} is not computed here; Transformer, Pooling and \
                             Normalize are"
                        );
                        return Err(ModelError::Json { path, reason });
                    }
                }
            }
        }
        let path = dir.join("sentence_bert_config.json");
        let fields: Map<String, Value> =
            if path.is_file() { json::read(&path)? } else { Map::new() };
        let fields = Fields::new("", &fields);
        let in_file = |error: ModelError| match error {
            ModelError::Config { field, value, accepted } => {
                let reason = format!("{field} is {value}, but must be {accepted}");
                ModelError::Json { path: path.clone(), reason }
            }
            error => error,
        };
        if fields.flag("do_lower_case", false).map_err(in_file)? {
            let reason =
                "do_lower_case is true, but must be false: the tokenizer itself lowers letters";
            return Err(ModelError::Json { path: path.clone(), reason: reason.to_owned() });
        }
        let max_seq_length = fields.nullable_size("max_seq_length", MAX_SIZE).map_err(in_file)?;
        let dimensions = config.counts("matryoshka_dimensions", MAX_SIZE)?;
        let is_matryoshka = config.flag("is_matryoshka", false)? || !dimensions.is_empty();
        Ok(Self {
            pooling,
            normalize,
            max_seq_length,
            matryoshka: is_matryoshka.then_some(dimensions),
        })
    }
}

/// The one mode that a pooling's config.json sets.
fn read_pooling(path: &Path) -> Result<Pooling, ModelError> {
    let fields: Map<String, Value> = json::read(path)?;
    let is_set = |(name, value): &(&String, &Value)| {
        name.starts_with("pooling_mode") && (**value == true || value.is_string())
    };
    let modes: Vec<&str> =
        fields.iter().filter(is_set).map(|(name, value)| value.as_str().unwrap_or(name)).collect();
    match modes[..] {
        ["pooling_mode_mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token" | "cls"] => Ok(Pooling::Cls),
        _ => {
            let shown = if modes.is_empty() { "none".to_owned() } else { modes.join(", ") };
            let reason = format!(
                "the pooling is {shown}, but must be pooling_mode_mean_tokens or \
                 pooling_mode_cls_token"
            );
            Err(ModelError::Json { path: path.to_owned(), reason })
        }
    }
}
