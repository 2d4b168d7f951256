//! From a checkpoint's safetensors to a model's weights.
//!
//! A model's constructor names each weight once and takes a [`Source`]. It runs
//! first over a [`Checker`], which finds everything that is missing or does not
//! fit without reading a byte of data, then over a [`Packer`].

use std::{collections::BTreeSet, sync::Arc};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use sconce_kernels::{Backend, WeightDtype, mapped::MappedSafetensors};

use crate::{ModelConfig, ModelError, read_ahead::ReadAhead};

/// Where a model's constructor gets its weights from.
pub(crate) trait Source {
    type Matrix;
    type Vector;

    /// Weights `[n, k]` on top of each other, by name and `n`.
    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<Self::Matrix, ModelError>;

    /// Vectors `[n]` end to end, by name and `n`.
    fn vector(&mut self, parts: &[(String, usize)]) -> Result<Self::Vector, ModelError>;

    /// Numbers that are computed, not loaded.
    fn table(&mut self, compute: impl FnOnce() -> Vec<f32>) -> Result<Self::Vector, ModelError>;
}

const EMBED_TOKENS: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";

/// The matrices over the vocabulary, by the checkpoint's names.
pub(crate) struct Vocabulary {
    pub(crate) embed_tokens: &'static str,
    /// `None`: the embedding's transpose.
    pub(crate) lm_head: Option<&'static str>,
    /// config.json says tied, the checkpoint not.
    is_untied: bool,
}

impl Vocabulary {
    /// As transformers: where config.json ties the two and the checkpoint has both, they
    /// stay apart unless they are equal; where it has one, that one is both.
    pub(crate) fn of(config: &ModelConfig, files: &MappedSafetensors) -> Self {
        let has = |name| files.describe(name).is_some();
        let (embed_tokens, lm_head, is_untied) =
            match (config.tie_word_embeddings, has(EMBED_TOKENS), has(LM_HEAD)) {
                (false, ..) => (EMBED_TOKENS, Some(LM_HEAD), false),
                (true, true, true) if !files.are_equal(EMBED_TOKENS, LM_HEAD) => {
                    (EMBED_TOKENS, Some(LM_HEAD), true)
                }
                (true, false, true) => (LM_HEAD, None, false),
                (true, ..) => (EMBED_TOKENS, None, false),
            };
        Self { embed_tokens, lm_head, is_untied }
    }

    pub(crate) fn warning(&self) -> Option<String> {
        let told = "config.json says tie_word_embeddings, but the checkpoint has a \
                    lm_head.weight that differs from the embedding; it is used";
        self.is_untied.then(|| told.to_owned())
    }
}

/// Tensors that old checkpoints hold, of what is computed here.
const COMPUTED: [&str; 3] = [".rotary_emb.inv_freq", ".masked_bias", ".position_ids"];

/// Whether a tensor that is not used could be a part of the model: a bias that config.json
/// denies, a layer too many, an adapter. It would run and answer wrongly without it.
fn is_of_the_model(name: &str) -> bool {
    name.starts_with("model.") || name.starts_with("lm_head.") || name.contains(".lora_")
}

/// A name from a file, as a message shows it.
fn shown(name: &str) -> String {
    const MAX: usize = 200;
    let mut shown: String = name.chars().take(MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Compares names, shapes and dtypes with the files.
pub(crate) struct Checker<'a> {
    files: &'a MappedSafetensors,
    problems: Vec<String>,
    known: BTreeSet<String>,
    order: Vec<String>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(files: &'a MappedSafetensors) -> Self {
        Self { files, problems: Vec::new(), known: BTreeSet::new(), order: Vec::new() }
    }

    /// The names of all tensors, in the order in which they were asked for, and a
    /// warning of those that are not used and are no part of the model.
    ///
    /// # Errors
    /// All problems together: what is missing or does not fit, and what is not used
    /// although it is a part of the model.
    pub(crate) fn finish(
        self,
        vocabulary: &Vocabulary,
    ) -> Result<(Vec<String>, Option<String>), ModelError> {
        let Self { files, mut problems, known, order } = self;
        let is_a_copy = |name: &str| name == LM_HEAD && vocabulary.lm_head.is_none();
        let mut unused: Vec<String> = files
            .names()
            .into_iter()
            .filter(|name| !known.contains(name) && !is_a_copy(name))
            .filter(|name| !COMPUTED.iter().any(|computed| name.ends_with(computed)))
            .collect();
        unused.sort();
        if problems.is_empty() && !unused.iter().any(|name| is_of_the_model(name)) {
            const MAX: usize = 20;
            let rest = unused.len().saturating_sub(MAX);
            let names: Vec<_> = unused.iter().take(MAX).map(|name| shown(name)).collect();
            let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            let warning = format!("tensors that are not used: {}{more}", names.join(", "));
            return Ok((order, (!unused.is_empty()).then_some(warning)));
        }
        let told = unused.iter().map(|name| format!("{} has no place in the model", shown(name)));
        problems.extend(told);
        Err(ModelError::Tensors { problems })
    }

    fn check(&mut self, name: &str, shape: &[usize]) {
        self.known.insert(name.to_owned());
        self.order.push(name.to_owned());
        let problem = match self.files.describe(name) {
            None => format!("{name} {shape:?} is missing"),
            Some((_, got)) if got != shape => format!("{name} is {got:?}, but must be {shape:?}"),
            Some((Some(DType::F32 | DType::BF16 | DType::F16), _)) => return,
            Some(_) => {
                let dtype = self.files.dtype_name(name).unwrap_or_default();
                format!("{name} has dtype {dtype}, but must be f32, bf16 or f16")
            }
        };
        self.problems.push(problem);
    }
}

impl Source for Checker<'_> {
    type Matrix = ();
    type Vector = ();

    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<(), ModelError> {
        parts.iter().for_each(|(name, n)| self.check(name, &[*n, k]));
        Ok(())
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<(), ModelError> {
        parts.iter().for_each(|(name, n)| self.check(name, &[*n]));
        Ok(())
    }

    fn table(&mut self, _compute: impl FnOnce() -> Vec<f32>) -> Result<(), ModelError> {
        Ok(())
    }
}

/// Loads weights through candle and packs them for a backend.
pub(crate) struct Packer<'a, B> {
    weights: VarBuilder<'static>,
    backend: &'a B,
    dtype: WeightDtype,
    loaded: usize,
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize),
    /// Bytes of the matrices packed so far.
    bytes: usize,
}

impl<'a, B: Backend> Packer<'a, B> {
    pub(crate) fn new(
        files: Arc<MappedSafetensors>,
        order: Vec<String>,
        backend: &'a B,
        dtype: WeightDtype,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let total = order.len();
        let source = Box::new(AsStored { ahead: ReadAhead::new(Arc::clone(&files), order), files });
        let weights = VarBuilder::from_backend(source, DType::F32, Device::Cpu);
        Self { weights, backend, dtype, loaded: 0, total, progress, bytes: 0 }
    }

    /// Bytes of all matrices in the backend's layout.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn load<S: Into<Shape>>(&mut self, name: &str, shape: S) -> Result<Tensor, ModelError> {
        let tensor = self.weights.get(shape, name).map_err(sconce_kernels::KernelError::from)?;
        self.loaded += 1;
        (self.progress)(self.loaded, self.total);
        Ok(tensor)
    }
}

impl<B: Backend> Source for Packer<'_, B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;

    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<B::Matrix, ModelError> {
        let parts: Vec<_> =
            parts.iter().map(|(name, n)| self.load(name, (*n, k))).collect::<Result<_, _>>()?;
        let matrix = self.backend.matrix(&parts, self.dtype)?;
        self.bytes += self.backend.matrix_bytes(&matrix);
        Ok(matrix)
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<B::Vector, ModelError> {
        let parts: Vec<_> =
            parts.iter().map(|(name, n)| self.load(name, *n)).collect::<Result<_, _>>()?;
        Ok(self.backend.vector(&parts)?)
    }

    fn table(&mut self, compute: impl FnOnce() -> Vec<f32>) -> Result<B::Vector, ModelError> {
        let numbers = compute();
        let len = numbers.len();
        let tensor = Tensor::from_vec(numbers, len, &Device::Cpu)
            .map_err(sconce_kernels::KernelError::from)?;
        Ok(self.backend.vector(&[tensor])?)
    }
}

/// The mapped files as a `VarBuilder`'s backend; tensors keep their dtype,
/// since a backend's packing converts them.
struct AsStored {
    ahead: ReadAhead,
    files: Arc<MappedSafetensors>,
}

impl SimpleBackend for AsStored {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape {
            return Ok(tensor);
        }
        Err(candle_core::Error::UnexpectedShape {
            msg: format!("tensor {name}"),
            expected: shape,
            got: tensor.shape().clone(),
        })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.ahead.take(name).map_err(|error| candle_core::Error::Msg(error.to_string()))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.files.describe(name).is_some()
    }
}
