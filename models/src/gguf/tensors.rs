//! model.safetensors from a GGUF file's tensors, one at a time.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashSet,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use candle_core::{DType, Device, quantized::gguf_file::Content};
use half::bf16;
use safetensors::{SafeTensorError, View, serialize_to_file};

use super::{GgufError, Model, Progress, rope};

/// A tensor of the output: its name and shape there, and where it comes from.
struct Planned {
    name: String,
    shape: Vec<usize>,
    source: String,
    /// Heads whose rows llama.cpp has reordered.
    reordered_heads: Option<usize>,
}

impl Model {
    /// Every tensor of the checkpoint.
    fn plan(&self) -> Vec<Planned> {
        let (hidden, q) = (self.hidden_size, self.num_heads * self.head_dim);
        let (kv, intermediate) = (self.num_kv_heads * self.head_dim, self.intermediate_size);
        let mut plan = Vec::new();
        let mut add = |name: String, shape: &[usize], source: String, reordered_heads| {
            plan.push(Planned { name, shape: shape.to_vec(), source, reordered_heads });
        };
        let embedding = [self.vocab_size, hidden];
        add("model.embed_tokens.weight".into(), &embedding, "token_embd.weight".into(), None);
        for index in 0..self.num_layers {
            let (q_heads, kv_heads) = (Some(self.num_heads), Some(self.num_kv_heads));
            let tensors: [(&str, &[usize], &str, Option<usize>); 9] = [
                ("input_layernorm", &[hidden], "attn_norm", None),
                ("self_attn.q_proj", &[q, hidden], "attn_q", q_heads),
                ("self_attn.k_proj", &[kv, hidden], "attn_k", kv_heads),
                ("self_attn.v_proj", &[kv, hidden], "attn_v", None),
                ("self_attn.o_proj", &[hidden, q], "attn_output", None),
                ("post_attention_layernorm", &[hidden], "ffn_norm", None),
                ("mlp.gate_proj", &[intermediate, hidden], "ffn_gate", None),
                ("mlp.up_proj", &[intermediate, hidden], "ffn_up", None),
                ("mlp.down_proj", &[hidden, intermediate], "ffn_down", None),
            ];
            for (name, shape, source, reordered_heads) in tensors {
                let name = format!("model.layers.{index}.{name}.weight");
                add(name, shape, format!("blk.{index}.{source}.weight"), reordered_heads);
            }
        }
        add("model.norm.weight".into(), &[hidden], "output_norm.weight".into(), None);
        if !self.tied {
            add("lm_head.weight".into(), &embedding, "output.weight".into(), None);
        }
        plan
    }
}

pub(super) fn convert(
    path: &Path,
    file: File,
    content: &Content,
    model: &Model,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), GgufError> {
    let plan = model.plan();
    let file_len =
        file.metadata().map_err(|reason| GgufError::Io { path: path.to_owned(), reason })?;
    check(content, file_len.len(), &plan)?;
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
fn check(content: &Content, file_len: u64, plan: &[Planned]) -> Result<(), GgufError> {
    let fail = |name: &str, reason: String| Err(GgufError::Tensor { name: name.into(), reason });
    for Planned { source, shape, .. } in plan {
        let Some(info) = content.tensor_infos.get(source) else {
            return fail(source, format!("is missing; it should be {shape:?}"));
        };
        let got = info.shape.dims();
        if got != shape {
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
        Some(name) => fail(name, "has no place in a Llama model".to_owned()),
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
        let Planned { source, shape, reordered_heads, .. } = self.planned;
        let mut file = self.reader.file.borrow_mut();
        let tensor = self.reader.content.tensor(&mut *file, source, &Device::Cpu)?;
        let values = tensor.dequantize(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
        let values = values.to_vec1::<f32>()?;
        let cols = if shape.len() == 2 { shape[1] } else { 1 };
        let mut bytes = Vec::with_capacity(values.len() * 2);
        for row in 0..values.len() / cols {
            let row = match reordered_heads {
                Some(heads) => llama_cpp_row(row, shape[0] / heads),
                None => row,
            };
            for &value in &values[row * cols..][..cols] {
                bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
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
