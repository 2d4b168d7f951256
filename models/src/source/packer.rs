//! Weights, read and packed for a backend.

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use sconce_kernels::{Backend, Fp8Weight, KernelError, WeightDtype, mapped::MappedSafetensors};

use super::{Checked, Source, Stored, fp8};
use crate::{ModelError, ModelSpec, RopeParams, WeightDtypes, read_ahead::ReadAhead};

/// Loads weights through candle and packs them for a backend.
pub(crate) struct Packer<'a, B: Backend> {
    files: Arc<MappedSafetensors>,
    weights: VarBuilder<'static>,
    backend: &'a B,
    dtypes: WeightDtypes,
    /// Whether the checkpoint has weights in fp8.
    is_fp8: bool,
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
    /// Matrices become what `dtypes` says, rotary tables have `max_positions`.
    pub(crate) fn new(
        files: Arc<MappedSafetensors>,
        checked: Checked,
        backend: &'a B,
        (dtypes, max_positions): (WeightDtypes, usize),
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let Checked { order, stored } = checked;
        let total = order.len();
        let is_fp8 = order.iter().any(|name| fp8::scale_of(&files, name).is_some());
        let ahead = ReadAhead::new(Arc::clone(&files), order);
        let source = Box::new(AsStored { ahead, files: Arc::clone(&files) });
        Self {
            files,
            is_fp8,
            weights: VarBuilder::from_backend(source, DType::F32, Device::Cpu),
            backend,
            dtypes,
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
            parts.iter().map(|(name, n)| self.widened(name, (*n, k))).collect::<Result<_, _>>()?;
        self.packed(&parts, dtype)
    }

    /// A matrix, out of fp8 if it is stored so.
    fn widened(&mut self, name: &str, shape: (usize, usize)) -> Result<Tensor, ModelError> {
        if fp8::scale_of(&self.files, name).is_none() {
            return self.load(name, shape);
        }
        let weight = self.load_fp8(name, shape)?;
        // Exact in f32; the backend rounds it once.
        Ok(weight.to_tensor(DType::F32)?)
    }

    /// A matrix that is stored in fp8.
    fn load_fp8(&mut self, name: &str, shape: (usize, usize)) -> Result<Fp8Weight, ModelError> {
        let scale = fp8::scale_of(&self.files, name).expect("it is stored in fp8");
        let weight = self.load(name, shape)?;
        let shape = self.files.describe(&scale).map_or_else(Vec::new, |(_, shape)| shape);
        let scales = self.load(&scale, shape)?;
        Ok(fp8::weight(&weight, &scales)?)
    }

    /// What a matrix of layers becomes that is not stored in fp8 with all its parts.
    fn of_layers(&self) -> WeightDtype {
        match self.dtypes.layers {
            // What the checkpoint leaves out of fp8 stays out of it.
            WeightDtype::Fp8E4m3 if self.is_fp8 => self.dtypes.vocabulary,
            dtype => dtype,
        }
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
        let is_stored = |(name, _): &(String, usize)| fp8::scale_of(&self.files, name).is_some();
        if self.dtypes.layers != WeightDtype::Fp8E4m3 || !parts.iter().all(is_stored) {
            return self.pack(parts, k, self.of_layers());
        }
        let parts: Vec<_> =
            parts.iter().map(|(name, n)| self.load_fp8(name, (*n, k))).collect::<Result<_, _>>()?;
        let matrix = self.backend.fp8_matrix(&parts)?;
        self.bytes += self.backend.matrix_bytes(&matrix);
        Ok(matrix)
    }

    fn vocabulary_matrix(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
    ) -> Result<B::Matrix, ModelError> {
        self.pack(parts, k, self.dtypes.vocabulary)
    }

    fn exact_matrix(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
    ) -> Result<B::Matrix, ModelError> {
        self.pack(parts, k, self.dtypes.exact)
    }

    fn stack(
        &mut self,
        name: &str,
        (count, n, k): (usize, usize, usize),
    ) -> Result<B::Matrix, ModelError> {
        let stacked = self.load(name, (count, n, k))?;
        let part = stacked.reshape((count * n, k)).map_err(KernelError::from)?;
        self.packed(&[part], self.of_layers())
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
