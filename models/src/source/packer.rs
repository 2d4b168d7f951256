//! Weights, read and packed for a backend.

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use sconce_kernels::{Backend, KernelError, WeightDtype, mapped::MappedSafetensors};

use super::{Checked, Source, Stored};
use crate::{ModelError, ModelSpec, RopeParams, read_ahead::ReadAhead};

/// Loads weights through candle and packs them for a backend.
pub(crate) struct Packer<'a, B: Backend> {
    weights: VarBuilder<'static>,
    backend: &'a B,
    dtype: WeightDtype,
    max_positions: usize,
    loaded: usize,
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize),
    /// Bytes of the matrices packed so far.
    bytes: usize,
    ropes: Vec<(RopeParams, Arc<B::Vector>)>,
    stored: std::vec::IntoIter<Stored>,
    spec: ModelSpec,
}

impl<'a, B: Backend> Packer<'a, B> {
    /// Every matrix becomes one of `dtype`, rotary tables have `max_positions`.
    pub(crate) fn new(
        files: Arc<MappedSafetensors>,
        checked: Checked,
        backend: &'a B,
        (dtype, max_positions): (WeightDtype, usize),
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let Checked { order, stored } = checked;
        let total = order.len();
        let source = Box::new(AsStored { ahead: ReadAhead::new(Arc::clone(&files), order), files });
        Self {
            weights: VarBuilder::from_backend(source, DType::F32, Device::Cpu),
            backend,
            dtype,
            max_positions,
            loaded: 0,
            total,
            progress,
            bytes: 0,
            ropes: Vec::new(),
            stored: stored.into_iter(),
            spec: ModelSpec::default(),
        }
    }

    /// What was built, and the bytes of all matrices in the backend's layout.
    pub(crate) fn finish(self) -> (ModelSpec, usize) {
        (self.spec, self.bytes)
    }

    fn pack(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
        dtype: WeightDtype,
    ) -> Result<B::Matrix, ModelError> {
        let parts: Vec<_> =
            parts.iter().map(|(name, n)| self.load(name, (*n, k))).collect::<Result<_, _>>()?;
        self.packed(&parts, dtype)
    }

    fn packed(&mut self, parts: &[Tensor], dtype: WeightDtype) -> Result<B::Matrix, ModelError> {
        let matrix = self.backend.matrix(parts, dtype)?;
        self.bytes += self.backend.matrix_bytes(&matrix);
        Ok(matrix)
    }

    fn load<S: Into<Shape>>(&mut self, name: &str, shape: S) -> Result<Tensor, ModelError> {
        let tensor = self.weights.get(shape, name).map_err(KernelError::from)?;
        self.loaded += 1;
        (self.progress)(self.loaded, self.total);
        Ok(tensor)
    }
}

impl<B: Backend> Source for Packer<'_, B> {
    type W = B;

    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<B::Matrix, ModelError> {
        self.pack(parts, k, self.dtype)
    }

    fn exact_matrix(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
    ) -> Result<B::Matrix, ModelError> {
        let is_quantized = self.dtype == WeightDtype::Int8;
        self.pack(parts, k, if is_quantized { WeightDtype::F32 } else { self.dtype })
    }

    fn stack(
        &mut self,
        name: &str,
        (count, n, k): (usize, usize, usize),
    ) -> Result<B::Matrix, ModelError> {
        let stacked = self.load(name, (count, n, k))?;
        let part = stacked.reshape((count * n, k)).map_err(KernelError::from)?;
        self.packed(&[part], self.dtype)
    }

    fn leave(&mut self, _: &str) {}

    fn has(&self, name: &str) -> bool {
        self.weights.contains_tensor(name)
    }

    fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Result<B::Vector, ModelError> {
        let mut parts: Vec<_> =
            parts.iter().map(|(name, n)| self.load(name, *n)).collect::<Result<_, _>>()?;
        if plus != 0.0 {
            let add = |part: &Tensor| part.to_dtype(DType::F32)?.affine(1.0, f64::from(plus));
            parts = parts.iter().map(add).collect::<Result<_, _>>().map_err(KernelError::from)?;
        }
        Ok(self.backend.vector(&parts)?)
    }

    fn rope(&mut self, rope: &RopeParams) -> Result<Arc<B::Vector>, ModelError> {
        if let Some((_, table)) = self.ropes.iter().find(|(known, _)| known == rope) {
            return Ok(Arc::clone(table));
        }
        let numbers = rope.table(self.max_positions);
        let len = numbers.len();
        let tensor = Tensor::from_vec(numbers, len, &Device::Cpu).map_err(KernelError::from)?;
        let table = Arc::new(self.backend.vector(&[tensor])?);
        self.ropes.push((*rope, Arc::clone(&table)));
        Ok(table)
    }

    fn stored(&mut self, _: &str, _: &str) -> Stored {
        self.stored.next().expect("a constructor asks a packer what it asked the checker")
    }

    fn spec(&mut self) -> &mut ModelSpec {
        &mut self.spec
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
