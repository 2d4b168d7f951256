//! The kernels' names, put together when this is compiled.

use super::GemvForm;
use crate::{CacheDtype, Dtype};

/// A kernel of activations in a dtype.
macro_rules! of_dtype {
    ($stem:literal, $dtype:expr) => {
        of_dtype!($stem, $dtype, "")
    };
    ($stem:literal, $dtype:expr, $end:literal) => {
        if $dtype == $crate::Dtype::F16 {
            concat!($stem, "_f16", $end)
        } else {
            concat!($stem, "_bf16", $end)
        }
    };
}
pub(super) use of_dtype;

/// A kernel of activations and a cache, if there is one for both.
macro_rules! of_cache {
    ($stem:literal, $end:expr, $dtypes:expr) => {
        match $dtypes {
            (Dtype::Bf16, CacheDtype::Bf16) => Some(concat!($stem, "_bf16", $end)),
            (Dtype::F16, CacheDtype::F16) => Some(concat!($stem, "_f16", $end)),
            (Dtype::Bf16, CacheDtype::Fp8E4m3) => Some(concat!($stem, "_bf16_e4m3", $end)),
            (Dtype::F16, CacheDtype::Fp8E4m3) => Some(concat!($stem, "_f16_e4m3", $end)),
            _ => None,
        }
    };
}

/// The same for a head_dim, with its number at the end.
macro_rules! of_head_dim {
    ($stem:literal, $head_dim:expr, $dtypes:expr) => {
        match $head_dim {
            64 => of_cache!($stem, "_d64", $dtypes),
            80 => of_cache!($stem, "_d80", $dtypes),
            96 => of_cache!($stem, "_d96", $dtypes),
            128 => of_cache!($stem, "_d128", $dtypes),
            256 => of_cache!($stem, "_d256", $dtypes),
            _ => None,
        }
    };
}

/// `rope_and_cache.cu`'s for activations and a cache.
pub(super) fn rope_and_cache(dtypes: (Dtype, CacheDtype)) -> Option<&'static str> {
    of_cache!("rope_and_cache", "", dtypes)
}

/// `prefill_attention.cu`'s for activations, a cache and a head_dim.
pub(super) fn prefill_attention(
    dtypes: (Dtype, CacheDtype),
    head_dim: usize,
) -> Option<&'static str> {
    of_head_dim!("prefill_attention", head_dim, dtypes)
}

/// `prefix_attention.cu`'s for activations, a cache and a head_dim.
pub(super) fn prefix_attention(
    dtypes: (Dtype, CacheDtype),
    head_dim: usize,
) -> Option<&'static str> {
    of_head_dim!("prefix_attention", head_dim, dtypes)
}

/// `prefill_groups.cu`'s for activations, a cache and a head_dim, if there is one: that which
/// copies pieces, or boxes.
pub(super) fn prefill_groups(
    (dtype, cache): (Dtype, CacheDtype),
    head_dim: usize,
    by_boxes: bool,
) -> Option<&'static str> {
    macro_rules! of_size {
        ($end:literal) => {
            match (dtype, cache, by_boxes) {
                (Dtype::Bf16, CacheDtype::Bf16, false) => {
                    Some(concat!("prefill_groups_bf16", $end))
                }
                (Dtype::F16, CacheDtype::F16, false) => Some(concat!("prefill_groups_f16", $end)),
                (Dtype::Bf16, CacheDtype::Bf16, true) => Some(concat!("prefill_bulk_bf16", $end)),
                (Dtype::F16, CacheDtype::F16, true) => Some(concat!("prefill_bulk_f16", $end)),
                _ => None,
            }
        };
    }
    match head_dim {
        64 => of_size!("_d64"),
        128 => of_size!("_d128"),
        256 => of_size!("_d256"),
        _ => None,
    }
}

/// `decode_attention.cu`'s for activations, a cache, a head_dim and rows of a block.
pub(super) fn decode_attention(
    dtypes: (Dtype, CacheDtype),
    head_dim: usize,
    columns: usize,
) -> Option<&'static str> {
    macro_rules! of_columns {
        ($head_dim:literal) => {
            if columns == 8 {
                of_cache!("decode_attention", concat!("_d", $head_dim, "_r8"), dtypes)
            } else {
                of_cache!("decode_attention", concat!("_d", $head_dim, "_r16"), dtypes)
            }
        };
    }
    match head_dim {
        64 => of_columns!(64),
        80 => of_columns!(80),
        96 => of_columns!(96),
        128 => of_columns!(128),
        256 => of_columns!(256),
        _ => None,
    }
}

/// `skinny.cu`'s for groups of eight rows and tiles of a task, if there is one.
pub(super) fn skinny(dtype: Dtype, groups: usize, tiles: usize) -> Option<&'static str> {
    Some(match (groups, tiles) {
        (1, 1) => of_dtype!("skinny", dtype, "_g1_t1"),
        (1, 2) => of_dtype!("skinny", dtype, "_g1_t2"),
        (1, 3) => of_dtype!("skinny", dtype, "_g1_t3"),
        (2, 1) => of_dtype!("skinny", dtype, "_g2_t1"),
        (2, 2) => of_dtype!("skinny", dtype, "_g2_t2"),
        (2, 3) => of_dtype!("skinny", dtype, "_g2_t3"),
        _ => return None,
    })
}

/// `gemv.cu`'s for activations, a weight in e4m3 or in their dtype, so many rows and a form, if
/// there is one.
pub(super) fn gemv(
    (dtype, is_narrow): (Dtype, bool),
    rows: usize,
    form: GemvForm,
) -> Option<&'static str> {
    if is_narrow {
        let GemvForm { rows: of_weight, ahead, threads, blocks } = form;
        if threads * blocks > 512 || (of_weight, ahead) != (2, 4) {
            return None;
        }
        return match rows {
            1 => Some(of_dtype!("gemv", dtype, "_e4m3_m1_r2_u4")),
            2 => Some(of_dtype!("gemv", dtype, "_e4m3_m2_r2_u4")),
            3 => Some(of_dtype!("gemv", dtype, "_e4m3_m3_r2_u4")),
            4 => Some(of_dtype!("gemv", dtype, "_e4m3_m4_r2_u4")),
            _ => None,
        };
    }
    if form.threads * form.blocks > 512 {
        return match (dtype, rows, form.rows, form.ahead) {
            (Dtype::Bf16, 1, 2, 4) => Some("gemv_bf16_m1_r2_u4_b2"),
            (Dtype::Bf16, 1, 1, 8) => Some("gemv_bf16_m1_r1_u8_b2"),
            _ => None,
        };
    }
    match (dtype, rows, form.rows, form.ahead) {
        (Dtype::Bf16, 1, 2, 4) => Some("gemv_bf16_m1_r2_u4"),
        (Dtype::Bf16, 2, 2, 4) => Some("gemv_bf16_m2_r2_u4"),
        (Dtype::Bf16, 3, 2, 4) => Some("gemv_bf16_m3_r2_u4"),
        (Dtype::Bf16, 4, 2, 4) => Some("gemv_bf16_m4_r2_u4"),
        (Dtype::F16, 1, 2, 4) => Some("gemv_f16_m1_r2_u4"),
        (Dtype::F16, 2, 2, 4) => Some("gemv_f16_m2_r2_u4"),
        (Dtype::F16, 3, 2, 4) => Some("gemv_f16_m3_r2_u4"),
        (Dtype::F16, 4, 2, 4) => Some("gemv_f16_m4_r2_u4"),
        (Dtype::Bf16, 1, 1, 8) => Some("gemv_bf16_m1_r1_u8"),
        (Dtype::Bf16, 2, 1, 8) => Some("gemv_bf16_m2_r1_u8"),
        _ => None,
    }
}
