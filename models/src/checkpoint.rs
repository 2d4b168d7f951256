//! A model directory, from config.json to a loaded model.

use std::path::{Path, PathBuf};

use sconce_kernels::{Backend, Dtype, WeightDtype};

use crate::{
    Model, ModelError, ModelSpec,
    config::{StoredFp8, beside_config},
    json,
    registry::{self, Configured},
    shards,
    source::{Checker, Packer},
};

/// A model directory whose config.json was read.
pub struct Checkpoint<B: Backend> {
    dir: PathBuf,
    family: Box<dyn Configured<B>>,
    stored: Option<StoredFp8>,
}

/// What a model's matrices become when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightDtypes {
    /// Projections, those of experts too.
    pub layers: WeightDtype,
    /// The embedding, and the output over the vocabulary.
    pub vocabulary: WeightDtype,
    /// What decides and takes little room: the choice of experts.
    pub exact: WeightDtype,
}

impl WeightDtypes {
    /// Layers in fp8, all else in the dtype that is computed in.
    #[must_use]
    pub fn fp8(dtype: Dtype) -> Self {
        let rest = dtype.into();
        Self { layers: WeightDtype::Fp8E4m3, vocabulary: rest, exact: rest }
    }
}

impl From<WeightDtype> for WeightDtypes {
    /// All in one, but what decides, which is not quantized; fp8 beside bfloat16.
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::Fp8E4m3 => Self::fp8(Dtype::Bf16),
            WeightDtype::Int8 => Self { layers: dtype, vocabulary: dtype, exact: WeightDtype::F32 },
            WeightDtype::F32 | WeightDtype::F16 | WeightDtype::Bf16 => {
                Self { layers: dtype, vocabulary: dtype, exact: dtype }
            }
        }
    }
}

/// A model as [`Checkpoint::load`] made it.
pub struct Loaded<B: Backend> {
    /// The model.
    pub model: Box<dyn Model<B>>,
    /// What it declared while it was built.
    pub spec: ModelSpec,
    /// Bytes of its matrices in the backend's layout; vectors are not counted.
    pub weight_bytes: usize,
    /// What a person should know of the checkpoint, a line each.
    pub warnings: Vec<String>,
}

impl<B: Backend + 'static> Checkpoint<B> {
    /// Reads and checks a directory's config.json.
    ///
    /// # Errors
    /// An unreadable file, a family that is not known, or a field that cannot be served,
    /// by name.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let (family, stored) = registry::read(&json::read(&dir.join("config.json"))?)?;
        let stored = match stored {
            None => beside_config(dir)?,
            stored => stored,
        };
        Ok(Self { dir: dir.to_owned(), family, stored })
    }

    /// Whether its layers are in fp8 already, but those that it leaves out.
    #[must_use]
    pub fn is_fp8(&self) -> bool {
        self.stored.is_some()
    }

    /// The architecture's name.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        self.family.architecture()
    }

    /// Tokens of context.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.family.max_positions()
    }

    /// What the family read of config.json, for callers that know which family it is.
    #[must_use]
    pub fn config<C: 'static>(&self) -> Option<&C> {
        self.family.config().downcast_ref()
    }

    /// Loads the model, for contexts of at most `max_positions`. Matrices become what `dtypes`
    /// says, or of one dtype the embedding and output too. Of a checkpoint in fp8 what is stored
    /// so stays so if layers are to be, and nothing else is quantized. `progress` is told the
    /// tensors loaded and all of them.
    ///
    /// # Errors
    /// A checkpoint that is damaged or does not fit its configuration; everything
    /// that is missing, misshapen or not used is named at once.
    pub fn load(
        &self,
        backend: &B,
        dtypes: impl Into<WeightDtypes>,
        max_positions: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Loaded<B>, ModelError> {
        let files = shards::open(&self.dir)?;
        let mut checker = Checker::new(&files).of_fp8(self.stored);
        self.family.check(&mut checker)?;
        let (checked, warnings) = checker.finish()?;
        let dtypes = dtypes.into();
        let mut packer = Packer::new(files, checked, backend, (dtypes, max_positions), progress);
        let model = self.family.pack(&mut packer)?;
        let (spec, weight_bytes) = packer.finish();
        Ok(Loaded { model, spec, weight_bytes, warnings })
    }
}
