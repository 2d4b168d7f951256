//! Reading config.json: its fields as transformers' config class of a family reads them,
//! with that class's defaults. What the class does not have is not read, whatever it says.

mod decoder;
mod fields;
mod mixture;
mod quantized;
mod rope;
mod windows;

pub use decoder::Decoder;
pub(crate) use decoder::{Defaults, KvHeads};
pub(crate) use fields::{Fields, clip, positive, refuse};
pub use mixture::Mixture;
pub(crate) use quantized::{BLOCK, StoredFp8, beside_config, stored_fp8};
pub(crate) use rope::{ReadRope, of_global_layers, of_local_layers};
pub(crate) use windows::{alternating_windows, optional_window, windows};

/// No size in a config.json may be larger; real ones are far below.
pub(crate) const MAX_SIZE: usize = 1 << 24;
/// The table of rotary embeddings grows with the context, and no tensor of the
/// checkpoint tells whether the figure is true.
pub(crate) const MAX_POSITIONS: usize = 1 << 22;
/// Every layer's names are written down before the checkpoint is looked at.
pub(crate) const MAX_LAYERS: usize = 1 << 10;
