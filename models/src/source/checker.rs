//! Whether a checkpoint is the model's.

use std::{collections::BTreeSet, sync::Arc};

use candle_core::DType;
use sconce_kernels::mapped::MappedSafetensors;

use super::{Source, Stored, Weights, fp8};
use crate::{ModelError, ModelSpec, RopeParams, config::StoredFp8};

/// Tensors that old checkpoints hold, of what is computed here.
const COMPUTED: [&str; 3] = [".rotary_emb.inv_freq", ".masked_bias", ".position_ids"];

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
    /// Whether matrices may be in fp8.
    stored: Option<StoredFp8>,
    problems: Vec<String>,
    warnings: Vec<String>,
    known: BTreeSet<String>,
    /// The names that all others stand below: `model`, `lm_head`.
    roots: BTreeSet<String>,
    checked: Checked,
    spec: ModelSpec,
}

/// What a constructor asked for, all of which fits.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// The names of all tensors, in the order in which they were asked for.
    pub(crate) order: Vec<String>,
    /// What was answered to [`Source::stored`], in order.
    pub(crate) stored: Vec<Stored>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(files: &'a MappedSafetensors) -> Self {
        Self {
            files,
            stored: None,
            problems: Vec::new(),
            warnings: Vec::new(),
            known: BTreeSet::new(),
            roots: BTreeSet::new(),
            checked: Checked::default(),
            spec: ModelSpec::default(),
        }
    }

    /// Of a checkpoint whose matrices may be in fp8, each with its scales.
    pub(crate) fn of_fp8(self, stored: Option<StoredFp8>) -> Self {
        Self { stored, ..self }
    }

    /// What was asked for, and what a person should know of the checkpoint, a line each:
    /// tensors that are not used and are no part of the model, for one.
    ///
    /// # Errors
    /// All problems together: what is missing or does not fit, and what is not used
    /// although it is a part of the model.
    pub(crate) fn finish(mut self) -> Result<(Checked, Vec<String>), ModelError> {
        let mut unused: Vec<String> = self
            .files
            .names()
            .into_iter()
            .filter(|name| !self.known.contains(name))
            .filter(|name| !COMPUTED.iter().any(|computed| name.ends_with(computed)))
            .collect();
        unused.sort();
        if !self.problems.is_empty() || unused.iter().any(|name| self.is_of_the_model(name)) {
            let told =
                unused.iter().map(|name| format!("{} has no place in the model", shown(name)));
            self.problems.extend(told);
            return Err(ModelError::Tensors { problems: self.problems });
        }
        if !unused.is_empty() {
            const MAX: usize = 20;
            let rest = unused.len().saturating_sub(MAX);
            let names: Vec<_> = unused.iter().take(MAX).map(|name| shown(name)).collect();
            let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            self.warnings.push(format!("tensors that are not used: {}{more}", names.join(", ")));
        }
        Ok((self.checked, self.warnings))
    }

    /// Whether a tensor that is not used could be a part of the model: a bias that
    /// config.json denies, a layer too many, an adapter. It would run and answer wrongly
    /// without it. Whatever stands below a name that the model has weights below is.
    fn is_of_the_model(&self, name: &str) -> bool {
        let root = name.split_once('.').map(|(root, _)| root);
        root.is_some_and(|root| self.roots.contains(root)) || name.contains(".lora_")
    }

    fn know(&mut self, name: &str) {
        self.known.insert(name.to_owned());
        if let Some((root, _)) = name.split_once('.') {
            self.roots.insert(root.to_owned());
        }
    }

    /// A matrix, which may be in fp8.
    fn check_matrix(&mut self, name: &str, (n, k): (usize, usize)) {
        let scale = self.stored.and_then(|_| fp8::scale_of(self.files, name));
        let Some(scale) = scale else { return self.check(name, &[n, k]) };
        for name in fp8::beside(name).chain([name.to_owned(), scale.clone()]) {
            self.know(&name);
        }
        self.checked.order.extend([name.to_owned(), scale.clone()]);
        if let Some((_, got)) = self.files.describe(name)
            && got != [n, k]
        {
            self.problems.push(format!("{name} is {got:?}, but must be {:?}", [n, k]));
        }
        let problem = match self.files.describe(&scale) {
            None => format!("{scale} is missing, and {name} is in fp8"),
            Some((_, got)) if fp8::block(&got, (n, k)).is_none() => {
                format!("{scale} is {got:?}, but must be {}", fp8::shapes((n, k)))
            }
            Some((Some(DType::F32 | DType::BF16 | DType::F16), _)) => return,
            Some(_) => {
                let dtype = self.files.dtype_name(&scale).unwrap_or_default();
                format!("{scale} has dtype {dtype}, but must be f32, bf16 or f16")
            }
        };
        self.problems.push(problem);
    }

    fn check(&mut self, name: &str, shape: &[usize]) {
        self.know(name);
        self.checked.order.push(name.to_owned());
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

/// Weights that are not loaded.
pub(crate) struct Unloaded;

impl Weights for Unloaded {
    type Matrix = ();
    type Vector = ();
}

impl Source for Checker<'_> {
    type W = Unloaded;

    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<(), ModelError> {
        parts.iter().for_each(|(name, n)| self.check_matrix(name, (*n, k)));
        Ok(())
    }

    fn vocabulary_matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<(), ModelError> {
        self.matrix(parts, k)
    }

    fn exact_matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<(), ModelError> {
        self.matrix(parts, k)
    }

    fn stack(
        &mut self,
        name: &str,
        (count, n, k): (usize, usize, usize),
    ) -> Result<(), ModelError> {
        self.check(name, &[count, n, k]);
        Ok(())
    }

    fn leave(&mut self, name: &str) {
        self.know(name);
    }

    fn has(&self, name: &str) -> bool {
        self.files.describe(name).is_some()
    }

    fn vector(&mut self, parts: &[(String, usize)], _: f32) -> Result<(), ModelError> {
        parts.iter().for_each(|(name, n)| self.check(name, &[*n]));
        Ok(())
    }

    fn rope(&mut self, _: &RopeParams) -> Result<Arc<()>, ModelError> {
        Ok(Arc::new(()))
    }

    fn stored(&mut self, first: &str, second: &str) -> Stored {
        [first, second].into_iter().for_each(|name| self.know(name));
        let has = |name| self.files.describe(name).is_some();
        let stored = match (has(first), has(second)) {
            (true, true) if !self.files.are_equal(first, second) => Stored::Both,
            (false, true) => Stored::Second,
            _ => Stored::First,
        };
        if stored == Stored::Both {
            self.warnings.push(format!(
                "config.json says tie_word_embeddings, but the checkpoint has a {second} that \
                 differs from the embedding; it is used"
            ));
        }
        self.checked.stored.push(stored);
        stored
    }

    fn spec(&mut self) -> &mut ModelSpec {
        &mut self.spec
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};
    use sconce_kernels::mapped::MappedSafetensors;

    use super::Checker;
    use crate::{ModelError, source::Scope};

    fn files(tensors: &[(&str, &[usize])]) -> (tempfile::TempDir, MappedSafetensors) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let tensors: HashMap<_, _> = tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), zeros(shape).expect("a tensor")))
            .collect();
        candle_core::safetensors::save(&tensors, &path).expect("it is written");
        (dir, MappedSafetensors::open(&[path]).expect("it is whole"))
    }

    /// An encoder of two layers beside a pooler: names that no family here has.
    fn check(tensors: &[(&str, &[usize])]) -> Result<(Vec<String>, Vec<String>), ModelError> {
        let (_dir, files) = files(tensors);
        let mut checker = Checker::new(&files);
        let mut scope = Scope::root(&mut checker);
        scope.at("encoder").layers(2, |s, _| s.at("mlp").matrix(&[("up", 3), ("gate", 3)], 2))?;
        scope.vector(&[("pooler", 2)], "bias")?;
        checker.finish().map(|(checked, warnings)| (checked.order, warnings))
    }

    const FITS: [(&str, &[usize]); 5] = [
        ("encoder.layers.0.mlp.up.weight", &[3, 2]),
        ("encoder.layers.0.mlp.gate.weight", &[3, 2]),
        ("encoder.layers.1.mlp.up.weight", &[3, 2]),
        ("encoder.layers.1.mlp.gate.weight", &[3, 2]),
        ("pooler.bias", &[2]),
    ];

    #[test]
    fn tensors_are_ordered_as_they_were_asked_for() {
        let (order, warnings) = check(&FITS).expect("all of it is there");
        assert_eq!(order, FITS.map(|(name, _)| name));
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn what_stands_below_a_name_that_was_asked_for_is_of_the_model() {
        // Names below which this model has nothing: told, and left alone.
        let others = [("model.layers.0.mlp.up.weight", &[1][..]), ("lm_head.weight", &[1])];
        let (_, warnings) = check(&[&FITS[..], &others[..]].concat()).expect("no harm");
        let told = "tensors that are not used: lm_head.weight, model.layers.0.mlp.up.weight";
        assert_eq!(warnings, [told]);
        for own in ["encoder.layers.2.mlp.up.weight", "encoder.mask", "pooler.weight"] {
            match check(&[&FITS[..], &[(own, &[1][..])]].concat()) {
                Err(ModelError::Tensors { problems }) => {
                    assert_eq!(problems, [format!("{own} has no place in the model")]);
                }
                other => panic!("{own}: {other:?}"),
            }
        }
    }

    #[test]
    fn missing_misshapen_and_unused_are_named_together() {
        let mut tensors = FITS.to_vec();
        tensors[1] = ("encoder.layers.0.mlp.gates.weight", &[3, 2]);
        tensors[4] = ("pooler.bias", &[3]);
        let Err(ModelError::Tensors { problems }) = check(&tensors) else {
            panic!("a broken checkpoint was accepted")
        };
        let expected = [
            "encoder.layers.0.mlp.gate.weight [3, 2] is missing",
            "pooler.bias is [3], but must be [2]",
            "encoder.layers.0.mlp.gates.weight has no place in the model",
        ];
        assert_eq!(problems, expected);
    }
}
