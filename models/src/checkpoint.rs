//! A model directory, from config.json to a loaded model.

use std::path::{Path, PathBuf};

use sconce_kernels::{Backend, WeightDtype};

use crate::{
    Model, ModelError, ModelSpec, json,
    registry::{self, Configured},
    shards,
    source::{Checker, Packer},
};

/// A model directory whose config.json was read.
pub struct Checkpoint<B: Backend> {
    dir: PathBuf,
    family: Box<dyn Configured<B>>,
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
        let family = registry::read(&json::read(&dir.join("config.json"))?)?;
        Ok(Self { dir: dir.to_owned(), family })
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

    /// Loads the model, for contexts of at most `max_positions`. Every matrix becomes one
    /// of `dtype`, the embedding and output too. `progress` is told the tensors loaded and
    /// all of them.
    ///
    /// # Errors
    /// A checkpoint that is damaged or does not fit its configuration; everything
    /// that is missing, misshapen or not used is named at once.
    pub fn load(
        &self,
        backend: &B,
        dtype: WeightDtype,
        max_positions: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Loaded<B>, ModelError> {
        let files = shards::open(&self.dir)?;
        let mut checker = Checker::new(&files);
        self.family.check(&mut checker)?;
        let (checked, warnings) = checker.finish()?;
        let mut packer = Packer::new(files, checked, backend, (dtype, max_positions), progress);
        let model = self.family.pack(&mut packer)?;
        let (spec, weight_bytes) = packer.finish();
        Ok(Loaded { model, spec, weight_bytes, warnings })
    }
}
