//! model.safetensors from a GGUF file's tensors, one at a time.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashSet,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use candle_core::{
    DType, Device,
    quantized::gguf_file::{Content, TensorInfo},
};
use half::bf16;
use safetensors::{SafeTensorError, View, serialize_to_file};

use super::{
    GgufError, Progress,
    architecture::{Architecture, Sizes},
    rope,
};

/// A tensor of the output: its name and shape there, and where it comes from.
struct Planned {
    name: String,
    shape: Vec<usize>,
    source: String,
    form: Form,
}

/// How a tensor lies in the file.
#[derive(Clone, Copy)]
enum Form {
    /// As in the output.
    Plain,
    /// The rows of each of so many heads are in another order.
    Reordered(usize),
    /// With 1 added.
    PlusOne,
    /// With those of other experts end to end.
    Expert { index: usize, count: usize },
}

impl Planned {
    /// The tensor's shape in the file.
    fn source_shape(&self) -> Vec<usize> {
        match self.form {
            Form::Expert { count, .. } => [&[count], &self.shape[..]].concat(),
            Form::Plain | Form::Reordered(_) | Form::PlusOne => self.shape.clone(),
        }
    }
}

/// Every tensor of the checkpoint.
fn plan(architecture: &Architecture, sizes: &Sizes) -> Vec<Planned> {
    let (hidden, q) = (sizes.hidden_size, sizes.num_heads * sizes.head_dim);
    let (kv, head_dim) = (sizes.num_kv_heads * sizes.head_dim, sizes.head_dim);
    let norm = if architecture.is_gemma { Form::PlusOne } else { Form::Plain };
    let heads = |count| match architecture.has_reordered_heads {
        true => Form::Reordered(count),
        false => Form::Plain,
    };
    let mut plan = Vec::new();
    let mut add = |name: String, shape: &[usize], source: String, form| {
        plan.push(Planned { name, shape: shape.to_vec(), source, form });
    };
    let embedding = [sizes.vocab_size, hidden];
    add("model.embed_tokens.weight".into(), &embedding, "token_embd.weight".into(), Form::Plain);
    let (norm_shape, head_shape) = ([hidden], [head_dim]);
    let (q_shape, kv_shape, o_shape) = ([q, hidden], [kv, hidden], [hidden, q]);
    let intermediate = sizes.experts.map_or(sizes.intermediate_size, |(_, size)| size);
    let (up_shape, down_shape) = ([intermediate, hidden], [hidden, intermediate]);
    for index in 0..sizes.num_layers {
        let (q_heads, kv_heads) = (heads(sizes.num_heads), heads(sizes.num_kv_heads));
        let mut tensors: Vec<(&str, &[usize], &str, Form)> = vec![
            ("input_layernorm.weight", &norm_shape, "attn_norm.weight", norm),
            ("self_attn.q_proj.weight", &q_shape, "attn_q.weight", q_heads),
            ("self_attn.k_proj.weight", &kv_shape, "attn_k.weight", kv_heads),
            ("self_attn.v_proj.weight", &kv_shape, "attn_v.weight", Form::Plain),
            ("self_attn.o_proj.weight", &o_shape, "attn_output.weight", Form::Plain),
        ];
        if architecture.has_qkv_bias {
            tensors.extend([
                ("self_attn.q_proj.bias", &q_shape[..1], "attn_q.bias", q_heads),
                ("self_attn.k_proj.bias", &kv_shape[..1], "attn_k.bias", kv_heads),
                ("self_attn.v_proj.bias", &kv_shape[..1], "attn_v.bias", Form::Plain),
            ]);
        }
        if architecture.has_qk_norm {
            tensors.extend([
                ("self_attn.q_norm.weight", &head_shape[..], "attn_q_norm.weight", norm),
                ("self_attn.k_norm.weight", &head_shape, "attn_k_norm.weight", norm),
            ]);
        }
        let norms: &[(&str, &str)] = match architecture.is_gemma {
            false => &[("post_attention_layernorm.weight", "ffn_norm.weight")],
            true => &[
                ("post_attention_layernorm.weight", "post_attention_norm.weight"),
                ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
                ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
            ],
        };
        tensors.extend(norms.iter().map(|&(name, source)| (name, &norm_shape[..], source, norm)));
        let layer = format!("model.layers.{index}");
        for (name, shape, source, form) in tensors {
            add(format!("{layer}.{name}"), shape, format!("blk.{index}.{source}"), form);
        }
        let products: [(&str, &[usize], &str); 3] = [
            ("gate_proj", &up_shape, "ffn_gate"),
            ("up_proj", &up_shape, "ffn_up"),
            ("down_proj", &down_shape, "ffn_down"),
        ];
        let Some((count, _)) = sizes.experts else {
            for (name, shape, source) in products {
                let name = format!("{layer}.mlp.{name}.weight");
                add(name, shape, format!("blk.{index}.{source}.weight"), Form::Plain);
            }
            continue;
        };
        let router = format!("blk.{index}.ffn_gate_inp.weight");
        add(format!("{layer}.mlp.gate.weight"), &[count, hidden], router, Form::Plain);
        for expert in 0..count {
            let form = Form::Expert { index: expert, count };
            for (name, shape, source) in products {
                let name = format!("{layer}.mlp.experts.{expert}.{name}.weight");
                add(name, shape, format!("blk.{index}.{source}_exps.weight"), form);
            }
        }
    }
    add("model.norm.weight".into(), &[hidden], "output_norm.weight".into(), norm);
    if !sizes.is_tied {
        add("lm_head.weight".into(), &embedding, "output.weight".into(), Form::Plain);
    }
    plan
}

pub(super) fn convert(
    path: &Path,
    file: File,
    content: &Content,
    architecture: &Architecture,
    sizes: &Sizes,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), GgufError> {
    let plan = plan(architecture, sizes);
    let file_len =
        file.metadata().map_err(|reason| GgufError::Io { path: path.to_owned(), reason })?;
    check(content, file_len.len(), &plan, architecture)?;
    let reader = Reader {
        file: RefCell::new(file),
        content,
        error: RefCell::new(None),
        done: RefCell::new(0),
        total: plan.len(),
        progress: RefCell::new(progress),
    };
    let tensors = plan.iter().map(|planned| (&planned.name, Lazy { planned, reader: &reader }));
    let info = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let written = serialize_to_file(tensors, Some(info), out);
    if let Some(error) = reader.error.take() {
        // What could not be read was written as zeros.
        let _ = std::fs::remove_file(out);
        return Err(error);
    }
    written.map_err(|error| match error {
        SafeTensorError::IoError(reason) => GgufError::Io { path: out.to_owned(), reason },
        other => GgufError::Invalid { path: path.to_owned(), reason: other.to_string() },
    })
}

/// Compares the plan with the file, before anything is written.
fn check(
    content: &Content,
    file_len: u64,
    plan: &[Planned],
    architecture: &Architecture,
) -> Result<(), GgufError> {
    let fail = |name: &str, reason: String| Err(GgufError::Tensor { name: name.into(), reason });
    for planned in plan {
        let (source, shape) = (&planned.source, planned.source_shape());
        let Some(info) = content.tensor_infos.get(source) else {
            return fail(source, format!("is missing; it should be {shape:?}"));
        };
        let got = info.shape.dims();
        if got != shape.as_slice() {
            return fail(source, format!("is {got:?}, but must be {shape:?}"));
        }
        let (block, dtype) = (info.ggml_dtype.block_size(), info.ggml_dtype);
        let row = shape[shape.len() - 1];
        if !row.is_multiple_of(block) {
            let reason = format!("has rows of {row}, but {dtype:?} has blocks of {block}");
            return fail(source, reason);
        }
        let bytes = shape.iter().product::<usize>() / block * dtype.type_size();
        let end = content
            .tensor_data_offset
            .checked_add(info.offset)
            .and_then(|start| start.checked_add(bytes as u64));
        if end.is_none_or(|end| end > file_len) {
            let reason = format!(
                "{bytes} bytes of it reach beyond the file's end, {file_len}; it may be half \
                 downloaded"
            );
            return fail(source, reason);
        }
    }
    let known: HashSet<&str> = plan.iter().map(|planned| planned.source.as_str()).collect();
    let unknown = |name: &&String| !known.contains(name.as_str()) && *name != rope::DIVISORS;
    match content.tensor_infos.keys().filter(unknown).min() {
        Some(name) => {
            let reason =
                format!("has no place in a model of the architecture {:?}", architecture.name);
            fail(name, reason)
        }
        None => Ok(()),
    }
}

/// Reads tensors while the output is written. Writing cannot fail for a reason
/// of the input's, so the first such reason is kept here.
struct Reader<'a> {
    file: RefCell<File>,
    content: &'a Content,
    error: RefCell<Option<GgufError>>,
    done: RefCell<usize>,
    total: usize,
    progress: RefCell<&'a mut dyn FnMut(Progress)>,
}

struct Lazy<'a> {
    planned: &'a Planned,
    reader: &'a Reader<'a>,
}

impl Lazy<'_> {
    /// The tensor in bf16, rows in Hugging Face's order.
    fn read(&self) -> candle_core::Result<Vec<u8>> {
        let Planned { source, shape, form, .. } = self.planned;
        let content = self.reader.content;
        let mut file = self.reader.file.borrow_mut();
        let info = &content.tensor_infos[source];
        let mut offset = info.offset;
        if let Form::Expert { index, .. } = form {
            let (block, bytes) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
            offset += (index * shape.iter().product::<usize>() / block * bytes) as u64;
        }
        let part = TensorInfo { ggml_dtype: info.ggml_dtype, shape: shape[..].into(), offset };
        let tensor = part.read(&mut *file, content.tensor_data_offset, &Device::Cpu)?;
        let values = tensor.dequantize(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
        let values = values.to_vec1::<f32>()?;
        let cols = if shape.len() == 2 { shape[1] } else { 1 };
        let added = if matches!(form, Form::PlusOne) { 1.0 } else { 0.0 };
        let mut bytes = Vec::with_capacity(values.len() * 2);
        for row in 0..values.len() / cols {
            let row = match form {
                Form::Reordered(heads) => llama_cpp_row(row, shape[0] / heads),
                Form::Plain | Form::PlusOne | Form::Expert { .. } => row,
            };
            for &value in &values[row * cols..][..cols] {
                bytes.extend_from_slice(&bf16::from_f32(value - added).to_le_bytes());
            }
        }
        Ok(bytes)
    }
}

/// Where llama.cpp keeps a row of Q or K: it interleaves the two halves of each
/// head, which Hugging Face's `rotate_half` keeps apart.
fn llama_cpp_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, index) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * index + half
}

impl View for Lazy<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.planned.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let read = catch_unwind(AssertUnwindSafe(|| self.read()));
        let reason = match read {
            Ok(Ok(bytes)) if bytes.len() == self.data_len() => {
                let done = self.reader.done.replace_with(|done| *done + 1) + 1;
                (self.reader.progress.borrow_mut())(Progress { done, total: self.reader.total });
                return Cow::Owned(bytes);
            }
            Ok(Ok(bytes)) => format!("has {} bytes of {}", bytes.len(), self.data_len()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its data does not fit its description".to_owned(),
        };
        let name = self.planned.source.clone();
        self.reader.error.borrow_mut().get_or_insert(GgufError::Tensor { name, reason });
        Cow::Owned(vec![0; self.data_len()])
    }

    fn data_len(&self) -> usize {
        self.planned.shape.iter().product::<usize>() * 2
    }
}
