//! Encoders: models that make a hidden state of each token of a text, in both directions.

use std::path::{Path, PathBuf};

pub use sconce_kernels::EncoderBackend;
use sconce_kernels::{Backend, KernelError, WeightDtype};
use serde_json::{Map, Value};

use crate::{
    Buf, ModelError, Pass, SentenceConfig,
    config::{Fields, clip, refuse},
    families::bert::{self, Bert},
    json, shards,
    source::{Checker, Packer, Scope},
};

/// What every encoder is to its runner.
pub trait Encoder<B: Backend>: Send {
    /// The last hidden state of every row, `[rows, hidden_size]`. A step's sequences are
    /// whole texts, each from position 0 on; the cache is not touched.
    ///
    /// # Errors
    /// The backend failed, or the step exceeds the workspace.
    fn forward(&self, pass: &mut Pass<'_, B>) -> Result<Buf, KernelError>;
}

/// An encoder's directory whose config.json was read.
pub struct EncoderCheckpoint {
    dir: PathBuf,
    config: bert::Config,
    sentence: SentenceConfig,
}

/// An encoder as [`EncoderCheckpoint::load`] made it.
pub struct LoadedEncoder<B: Backend> {
    /// The model.
    pub model: Box<dyn Encoder<B>>,
    /// Bytes of its matrices in the backend's layout; vectors are not counted.
    pub weight_bytes: usize,
    /// What a person should know of the checkpoint, a line each.
    pub warnings: Vec<String>,
}

impl EncoderCheckpoint {
    /// Reads and checks a directory's config.json, and what sentence-transformers keeps
    /// beside it; `None` where the model is of no family of encoders.
    ///
    /// # Errors
    /// An unreadable file, or a field that cannot be served, by name.
    pub fn open(dir: &Path) -> Result<Option<Self>, ModelError> {
        let fields: Map<String, Value> = json::read(&dir.join("config.json"))?;
        let fields = Fields::new("", &fields);
        let named = fields.strings("architectures")?;
        let is_named = named.contains(&bert::ARCHITECTURE);
        let model_type = fields.nullable_string("model_type")?;
        if model_type != Some(bert::MODEL_TYPE) && (model_type.is_some() || !is_named) {
            return Ok(None);
        }
        if !named.is_empty() && !is_named {
            let accepted = format!("{}, which makes embeddings", bert::ARCHITECTURE);
            return Err(refuse("architectures", &clip(&named.join(", ")), accepted));
        }
        let config = bert::Config::read(&fields)?;
        let sentence = SentenceConfig::read(dir, &fields)?;
        Ok(Some(Self { dir: dir.to_owned(), config, sentence }))
    }

    /// The architecture's name.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        bert::ARCHITECTURE
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &bert::Config {
        &self.config
    }

    /// What becomes of the hidden states.
    #[must_use]
    pub fn sentence(&self) -> &SentenceConfig {
        &self.sentence
    }

    /// Tokens of a text, those that the tokenizer adds included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        let most = self.config.max_position_embeddings;
        self.sentence.max_seq_length.map_or(most, |own| own.min(most))
    }

    /// Loads the encoder. Its large matrices become ones of `dtype`. `progress` is told the
    /// tensors loaded and all of them.
    ///
    /// # Errors
    /// A checkpoint that is damaged or does not fit its configuration; everything that is
    /// missing, misshapen or not used is named at once.
    pub fn load<B: EncoderBackend + 'static>(
        &self,
        backend: &B,
        dtype: WeightDtype,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LoadedEncoder<B>, ModelError> {
        let files = shards::open(&self.dir)?;
        let mut checker = Checker::new(&files);
        Bert::build(&self.config, &mut Scope::root(&mut checker))?;
        let (checked, warnings) = checker.finish()?;
        let positions = self.config.max_position_embeddings;
        let mut packer = Packer::new(files, checked, backend, (dtype.into(), positions), progress);
        let model = Box::new(Bert::build(&self.config, &mut Scope::root(&mut packer))?);
        let (_, weight_bytes) = packer.finish();
        Ok(LoadedEncoder { model, weight_bytes, warnings })
    }
}
