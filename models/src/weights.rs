//! From a directory's safetensors to a model's weights.
//!
//! A model's constructor names each weight once and takes a [`Source`]. It runs
//! first over a [`Checker`], which finds everything that is missing or does not
//! fit without reading a byte of data, then over a [`Packer`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use sconce_kernels::{Backend, WeightDtype, mapped::MappedSafetensors};
use serde::Deserialize;

use crate::{ModelError, json, read_ahead::ReadAhead};

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

/// The checkpoint's files: one, or the shards that an index names.
pub(crate) fn open(dir: &Path) -> Result<Arc<MappedSafetensors>, ModelError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    let paths = if single.is_file() {
        vec![single]
    } else if index.is_file() {
        shards(dir, &index)?
    } else {
        return Err(ModelError::NoCheckpoint { path: dir.to_owned() });
    };
    Ok(Arc::new(MappedSafetensors::open(&paths)?))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let invalid = |reason| ModelError::Json { path: index.to_owned(), reason };
    let names: BTreeSet<String> = json::read::<Index>(index)?.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(invalid("weight_map names no file".to_owned()));
    }
    // A shard lies beside its index: a name is no path.
    let plain = |name: &str| {
        let mut components = Path::new(name).components();
        matches!(components.next(), Some(Component::Normal(only)) if only == name)
            && components.next().is_none()
    };
    if let Some(name) = names.iter().find(|name| !plain(name)) {
        return Err(invalid(format!("weight_map names {name:?}, which is not a file's name")));
    }
    let missing: Vec<&str> =
        names.iter().filter(|name| !dir.join(name).is_file()).map(String::as_str).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(invalid(format!("these of its files are missing: {missing}")));
    }
    Ok(names.iter().map(|name| dir.join(name)).collect())
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

    /// The names of all tensors, in the order in which they were asked for.
    ///
    /// A layer's tensor that nobody asked for (a bias that config.json denies,
    /// say) would make a model that runs and answers wrongly, so it is a problem.
    ///
    /// # Errors
    /// All problems together.
    pub(crate) fn finish(self) -> Result<Vec<String>, ModelError> {
        let Self { files, mut problems, known, order } = self;
        let mut unknown: Vec<String> = files
            .names()
            .into_iter()
            .filter(|name| name.starts_with("model.layers.") && !known.contains(name))
            // Old checkpoints hold RoPE's frequencies, which are computed here.
            .filter(|name| !name.ends_with(".rotary_emb.inv_freq"))
            .map(|name| format!("{name} has no place in the model"))
            .collect();
        unknown.sort();
        problems.append(&mut unknown);
        if problems.is_empty() { Ok(order) } else { Err(ModelError::Tensors { problems }) }
    }

    fn check(&mut self, name: &str, shape: &[usize]) {
        self.known.insert(name.to_owned());
        self.order.push(name.to_owned());
        let problem = match self.files.describe(name) {
            None => format!("{name} {shape:?} is missing"),
            Some((_, got)) if got != shape => format!("{name} is {got:?}, but must be {shape:?}"),
            Some((Some(DType::F32 | DType::BF16 | DType::F16), _)) => return,
            Some((dtype, _)) => {
                let dtype = dtype.map_or("unknown", |dtype| dtype.as_str());
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
