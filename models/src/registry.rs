//! Which families there are, and which of them a config.json describes.

use std::any::Any;

use sconce_kernels::{Backend, cpu::Cpu};
use serde_json::Map;

use crate::{
    Model, ModelError,
    config::{Fields, StoredFp8, clip, refuse, stored_fp8},
    families::{
        gemma3::Gemma3ForCausalLM, llama::LlamaForCausalLM, mistral::MistralForCausalLM,
        qwen2::Qwen2ForCausalLM, qwen3::Qwen3ForCausalLM, qwen3_moe::Qwen3MoeForCausalLM,
    },
    gguf,
    source::{Checker, Packer, Scope, Source, Weights},
};

/// A class of config.json's `architectures`.
pub(crate) trait Family {
    /// Its name there.
    const ARCHITECTURE: &'static str;
    /// config.json's `model_type`.
    const MODEL_TYPE: &'static str;
    /// The models that are of it, in words.
    const MODELS: &'static str;
    /// What it reads of config.json.
    type Config: Any;
    /// The model over loaded weights.
    type Model<W: Weights>;

    /// Reads and checks config.json.
    ///
    /// # Errors
    /// A field that cannot be served: its value, and what could be.
    fn read(config: &Fields<'_>) -> Result<Self::Config, ModelError>;

    /// Tokens of context.
    fn max_positions(config: &Self::Config) -> usize;

    /// Asks for every weight, once, in the order of the forward pass.
    ///
    /// # Errors
    /// The source's.
    fn build<S: Source>(
        config: &Self::Config,
        s: &mut Scope<'_, S>,
    ) -> Result<Self::Model<S::W>, ModelError>;
}

/// The families, a line each.
fn registry<B: Backend + 'static>() -> Vec<Entry<B>> {
    vec![
        entry::<LlamaForCausalLM, B>(),
        entry::<MistralForCausalLM, B>(),
        entry::<Qwen2ForCausalLM, B>(),
        entry::<Qwen3ForCausalLM, B>(),
        entry::<Qwen3MoeForCausalLM, B>(),
        entry::<Gemma3ForCausalLM, B>(),
    ]
}

/// What is known of a family without a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyInfo {
    /// The class in config.json's `architectures`.
    pub architecture: &'static str,
    /// The models that are of it, in words.
    pub models: &'static str,
    /// `general.architecture` of the GGUF files that are converted to it.
    pub gguf: Option<&'static str>,
}

/// The families that are served.
#[must_use]
pub fn families() -> Vec<FamilyInfo> {
    let info = |entry: Entry<Cpu>| FamilyInfo {
        architecture: entry.architecture,
        models: entry.models,
        gguf: gguf::architecture_of(entry.model_type),
    };
    registry().into_iter().map(info).collect()
}

type Read<B> = fn(&Fields<'_>) -> Result<Box<dyn Configured<B>>, ModelError>;

/// A family on a backend.
struct Entry<B: Backend> {
    architecture: &'static str,
    model_type: &'static str,
    models: &'static str,
    read: Read<B>,
}

fn entry<F: Family + 'static, B: Backend + 'static>() -> Entry<B>
where
    F::Model<B>: Model<B> + 'static,
{
    Entry {
        architecture: F::ARCHITECTURE,
        model_type: F::MODEL_TYPE,
        models: F::MODELS,
        read: |config| Ok(Box::new(Of::<F>(F::read(config)?))),
    }
}

/// A family with its config.json, on a backend.
pub(crate) trait Configured<B: Backend> {
    fn architecture(&self) -> &'static str;
    fn max_positions(&self) -> usize;
    fn config(&self) -> &dyn Any;
    fn check(&self, checker: &mut Checker<'_>) -> Result<(), ModelError>;
    fn pack(&self, packer: &mut Packer<'_, B>) -> Result<Box<dyn Model<B>>, ModelError>;
}

struct Of<F: Family>(F::Config);

impl<F: Family, B: Backend + 'static> Configured<B> for Of<F>
where
    F::Model<B>: Model<B> + 'static,
{
    fn architecture(&self) -> &'static str {
        F::ARCHITECTURE
    }

    fn max_positions(&self) -> usize {
        F::max_positions(&self.0)
    }

    fn config(&self) -> &dyn Any {
        &self.0
    }

    fn check(&self, checker: &mut Checker<'_>) -> Result<(), ModelError> {
        F::build(&self.0, &mut Scope::root(checker)).map(drop)
    }

    fn pack(&self, packer: &mut Packer<'_, B>) -> Result<Box<dyn Model<B>>, ModelError> {
        Ok(Box::new(F::build(&self.0, &mut Scope::root(packer))?))
    }
}

/// A config.json as its family has read it, and how weights are stored in fp8, if they are.
pub(crate) type KnownConfig<B> = (Box<dyn Configured<B>>, Option<StoredFp8>);

/// Reads a config.json as its family does.
///
/// # Errors
/// A family that is not known, or a field that cannot be served, by name.
pub(crate) fn read<B: Backend + 'static>(
    config: &Map<String, serde_json::Value>,
) -> Result<KnownConfig<B>, ModelError> {
    let config = Fields::new("", config);
    let families = registry();
    let family = find(&families, &config)?;
    let stored = stored_fp8(&config)?;
    refuse_other_kinds(&config)?;
    Ok(((family.read)(&config)?, stored))
}

/// The family that `model_type` and `architectures` agree on. transformers goes by the
/// one, other engines by the other, so a contradiction is refused.
fn find<'a, B: Backend>(
    families: &'a [Entry<B>],
    config: &Fields<'_>,
) -> Result<&'a Entry<B>, ModelError> {
    let named = config.strings("architectures")?;
    let model_type = config.nullable_string("model_type")?;
    let is_named = |entry: &&Entry<B>| named.contains(&entry.architecture);
    let unknown = || {
        let shown = if named.is_empty() { "absent".to_owned() } else { named.join(", ") };
        let known = families.iter().map(|entry| entry.architecture);
        refuse("architectures", &clip(&shown), one_of(known, &named))
    };
    if !named.is_empty() && !families.iter().any(|entry| is_named(&entry)) {
        return Err(unknown());
    }
    let Some(model_type) = model_type else {
        let mut candidates = families.iter().filter(is_named);
        return match (candidates.next(), candidates.next()) {
            (Some(entry), None) => Ok(entry),
            _ => Err(unknown()),
        };
    };
    let entry = families.iter().find(|entry| entry.model_type == model_type);
    let entry = entry.ok_or_else(|| {
        let known = families.iter().map(|entry| entry.model_type);
        refuse("model_type", &clip(model_type), one_of(known, &[model_type]))
    })?;
    if !named.is_empty() && !is_named(&entry) {
        let accepted = format!("{}, as model_type is {model_type}", entry.architecture);
        return Err(refuse("architectures", &clip(&named.join(", ")), accepted));
    }
    Ok(entry)
}

/// The names that are known, and which of them is nearest to one that was given, if none
/// of those is known.
fn one_of(known: impl Iterator<Item = &'static str>, given: &[&str]) -> String {
    let known: Vec<&str> = known.collect();
    let mut text = format!("one of {}", known.join(", "));
    // A name is at most so long; the distance takes the product of both.
    let given = given.iter().filter(|name| name.len() <= 100);
    let nearest = given
        .flat_map(|name| known.iter().map(|known| (strsim::levenshtein(name, known), known)))
        .min_by_key(|&(distance, _)| distance);
    if let Some((1.., nearest)) = nearest {
        text += &format!("; the nearest of these is {nearest}");
    }
    text
}

/// A field whose mere presence makes another kind of model of it.
fn refuse_other_kinds(config: &Fields<'_>) -> Result<(), ModelError> {
    let empty = |value: &serde_json::Value| value.as_object().is_some_and(Map::is_empty);
    if config.given("per_layer_config").is_some_and(|value| !empty(value)) {
        let accepted = "absent: all layers have the same sizes".to_owned();
        return Err(refuse("per_layer_config", &"present", accepted));
    }
    Ok(())
}
