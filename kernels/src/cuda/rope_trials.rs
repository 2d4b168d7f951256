//! Whether Q, K and V of few rows are rotated, and written to the cache, in the launch of their
//! product: if that is right, and faster, on a device.

use std::time::Duration;

use super::{
    Cuda, Driver, GemvForm, ProductForm, RopeEnd,
    head_trials::{Heads, TwoForms},
    memory::encode,
    product_trials::pattern,
    products::{Operands, Outcome},
    word,
};
use crate::{BLOCK_SIZE, CacheDtype, Dtype, Findings, KernelError, Verdict};

const IN_ONE: &str = "in its launch";
const ROTATION: TwoForms =
    TwoForms { begin: "rotation of a product of few rows", forms: [IN_ONE, "after it"] };

/// Heads of Q, heads of K and V, and inputs.
type Sizes = (usize, usize, usize);
/// What is compared, and what is timed.
const SMALL: Sizes = (3, 2, 256);
const LARGE: Sizes = (32, 8, 4096);
/// Rows that are compared, and the forms of their products.
const COMPARED: [(usize, ProductForm); 3] = [
    (1, ProductForm::FewRows(GemvForm::DEFAULT)),
    (4, ProductForm::FewRows(GemvForm::DEFAULT)),
    (9, ProductForm::Skinny),
];
const MAX_POSITIONS: usize = 50;
/// Calls that are timed together.
const CALLS: u32 = 16;

/// What the launches read and write.
struct Placed<M> {
    heads: Heads,
    operands: Operands,
    end: RopeEnd,
    out: (M, usize),
    cache: (M, usize),
    /// Keeps them where they are.
    _read: [M; 6],
}

impl<D: Driver> Cuda<D> {
    /// Has Q, K and V of few rows be rotated in the launch of their product, whether or not it was
    /// tried, or never; `None`: where it was found faster.
    pub fn use_rotation(&mut self, in_product: Option<bool>) {
        self.rotation = in_product;
    }

    /// Whether such heads are.
    pub(super) fn rotates_in_product(&self, heads: Heads) -> bool {
        let found = || self.form_of_heads(&ROTATION, heads) == Some(IN_ONE);
        self.rotation.unwrap_or_else(found)
    }

    /// Tries what is not known of it, and takes the best form for these heads from then on.
    pub(super) fn try_rotation(
        &mut self,
        heads: &[Heads],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        // Few rows have no launch of their own then.
        if self.is_deterministic {
            return Ok(());
        }
        self.try_two_forms(&ROTATION, heads, (found, keep), |cuda, form, heads| {
            cuda.try_rotating(form == IN_ONE, heads)
        })
    }

    /// Tries again what `found` knows of it.
    pub(super) fn try_rotation_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let heads = self.forget_heads(&ROTATION, found);
        self.try_rotation(&heads, found, keep)
    }

    fn try_rotating(&mut self, in_one: bool, heads: Heads) -> Result<Verdict, KernelError> {
        if in_one {
            for (rows, form) in COMPARED {
                let [one, two] =
                    [self.placed(SMALL, rows, heads)?, self.placed(SMALL, rows, heads)?];
                self.driver.begin_step()?;
                if !self.rotated(form, true, &one)? {
                    // Tiles of 16 outputs are not of one half of a head of 80.
                    if rows == 1 {
                        return Err(no_such_launch());
                    }
                    continue;
                }
                self.rotated(form, false, &two)?;
                self.driver.finish()?;
                let [got, want] = [self.left(&one)?, self.left(&two)?];
                if let Some(at) = got.iter().zip(&want).position(|(got, want)| got != want) {
                    let (got, want) = (got[at], want[at]);
                    let how = format!("byte {at} of {rows} rows is {got:#x}, not {want:#x}");
                    return Ok(Verdict::Wrong(how));
                }
            }
        }
        let small = self.placed(SMALL, 1, heads)?;
        let time = |cuda: &mut Self, placed: &_, calls| cuda.time_rotated(in_one, placed, calls);
        // The first loads what there is to load.
        time(self, &small, 1)?;
        self.time_trial(small, |cuda| cuda.placed(LARGE, 1, heads), CALLS, time)
    }

    /// Of one call.
    fn time_rotated(
        &mut self,
        in_one: bool,
        placed: &Placed<D::Memory>,
        calls: u32,
    ) -> Result<Duration, KernelError> {
        let form = ProductForm::FewRows(GemvForm::DEFAULT);
        self.driver.begin_step()?;
        for _ in 0..calls {
            if !self.rotated(form, in_one, placed)? {
                return Err(no_such_launch());
            }
        }
        Ok(self.driver.finish()?.unwrap_or_default() / calls)
    }

    /// Launches one product, and the rotation in it or after it; false if there is no such launch.
    fn rotated(
        &mut self,
        form: ProductForm,
        in_one: bool,
        placed: &Placed<D::Memory>,
    ) -> Result<bool, KernelError> {
        let Placed { heads: (_, cache), operands, end, .. } = placed;
        let outcome = if in_one { Outcome::Rope(*end) } else { Outcome::Store };
        if !self.few_rows(form, outcome, operands)? {
            return Ok(false);
        }
        if !in_one {
            self.rotate((operands.rows, operands.out), end, None, *cache)?;
        }
        Ok(true)
    }

    fn placed(
        &self,
        (num_heads, num_kv_heads, k): Sizes,
        rows: usize,
        (head_dim, cache_dtype): Heads,
    ) -> Result<Placed<D::Memory>, KernelError> {
        let n = (num_heads + 2 * num_kv_heads) * head_dim;
        let place = |bytes: &[u8]| self.place(bytes);
        let random = |seed, elements: usize, dtype: Dtype| {
            self.place_over(&encode(&pattern(seed), dtype), elements * dtype.size())
        };
        let x = random(5, rows * k, self.dtype)?;
        let w = random(6, n * k, self.dtype)?;
        let norm = random(7, k, Dtype::F32)?;
        let table = random(8, MAX_POSITIONS * head_dim, Dtype::F32)?;
        let of_rows = |step: usize, most: usize| -> Vec<u32> {
            (0..rows).map(|row| word(row * step % most)).collect()
        };
        let positions = place(bytemuck::cast_slice(&of_rows(7, MAX_POSITIONS)))?;
        let slots = place(bytemuck::cast_slice(&of_rows(5, 2 * BLOCK_SIZE)))?;
        let out_bytes = rows * n * self.dtype.size();
        let out = place(&vec![0xff; out_bytes])?;
        let cache_bytes = 2 * 2 * num_kv_heads * BLOCK_SIZE * head_dim * cache_dtype.size();
        let cache = place(&vec![0xff; cache_bytes])?;
        let address = |memory: &D::Memory| self.driver.address(memory);
        Ok(Placed {
            heads: (head_dim, cache_dtype),
            operands: Operands {
                x: address(&x),
                w: address(&w),
                scales: None,
                bias: None,
                norm: Some((address(&norm), 1e-5)),
                out: address(&out),
                out_dtype: self.dtype,
                rows,
                n,
                k,
            },
            end: RopeEnd {
                table: address(&table),
                positions: address(&positions),
                slot_mapping: address(&slots),
                cache: address(&cache),
                num_heads: word(num_heads),
                num_kv_heads: word(num_kv_heads),
                head_dim: word(head_dim),
                is_e4m3: u32::from(cache_dtype == CacheDtype::Fp8E4m3),
                k_scale: 1.0,
                v_scale: 1.0,
            },
            out: (out, out_bytes),
            cache: (cache, cache_bytes),
            _read: [x, w, norm, table, positions, slots],
        })
    }

    /// Q of each row, and the cache, in bytes.
    fn left(&self, placed: &Placed<D::Memory>) -> Result<Vec<u8>, KernelError> {
        let read = |(memory, bytes): &(D::Memory, usize)| {
            let mut data = vec![0; *bytes];
            self.driver.download(memory, &mut data)?;
            Ok::<_, KernelError>(data)
        };
        let of_row = placed.operands.n * self.dtype.size();
        let of_queries = placed.end.num_heads as usize * placed.heads.0 * self.dtype.size();
        let mut left = read(&placed.cache)?;
        for row in read(&placed.out)?.chunks_exact(of_row) {
            left.extend_from_slice(&row[..of_queries]);
        }
        Ok(left)
    }
}

fn no_such_launch() -> KernelError {
    KernelError::Unsupported {
        what: "the rotation in a product's launch".to_owned(),
        device: "this device",
        accepted: "it is rotated after it",
    }
}
