//! Forms of products: what is tried, what is used, and what comes of faults.

use std::time::Duration;

use candle_core::Tensor;
use sconce_cuda_shim::ShimDriver;
use sconce_kernels::{
    AttentionKind, AttentionParams, CacheDtype, Device as _, Dtype, Findings, KernelError, Mask,
    Ops as _, StepLimits, Trial, Verdict, WeightDtype,
    cuda::{
        Cuda, DevicePointer, Driver, Fp8Matmul, Fp8Scaling, KernelParams, Launch, Matmul, TileMap,
    },
};

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The kernels for few rows are refused.
    Refused,
    /// They do nothing.
    Idle,
    /// That on tensor cores is the fastest.
    QuickSkinny,
    /// Attention of prompts by groups of warps does nothing.
    IdleGroups,
    /// It does nothing where it copies by boxes.
    IdleBoxes,
    /// The device maps no tensors.
    NoMaps,
    /// Decodes take a third of the time where they share a prefix.
    QuickPrefixes,
    /// And what they share is not computed.
    IdlePrefixes,
    /// cuBLAS does nothing, nor does the kernel on tensor cores.
    IdleLibrary,
    /// The kernel takes the context with it.
    Sticky,
    /// Products of fp8 do not scale rows.
    UnscaledRows,
    /// The second of the library's algorithms is faster than its own choice.
    QuickProposal,
    /// It is, and loses a part of the sums.
    WrongProposal,
    /// cuBLAS's results depend on the number of rows that it is given.
    ByRows,
}

/// The shim with a fault, on which a product of the library takes twice as long as another.
struct Faulty {
    shim: ShimDriver,
    fault: Fault,
    took: Duration,
    launches: usize,
    /// Whether the step has shared a prefix.
    has_shared: bool,
}

impl Driver for Faulty {
    type Memory = <ShimDriver as Driver>::Memory;
    type Graph = <ShimDriver as Driver>::Graph;

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        self.shim.begin_capture()
    }

    fn end_capture(&mut self) -> Result<Self::Graph, KernelError> {
        self.shim.end_capture()
    }

    fn replay(&mut self, graph: &Self::Graph) -> Result<(), KernelError> {
        self.shim.replay(graph)
    }

    fn describe(&self) -> String {
        self.shim.describe()
    }

    fn multiprocessors(&self) -> usize {
        self.shim.multiprocessors()
    }

    fn has_warp_groups(&self) -> bool {
        self.shim.has_warp_groups()
    }

    fn tile_map(&self, at: DevicePointer, rows: usize, columns: usize) -> Option<TileMap> {
        self.shim.tile_map(at, rows, columns).filter(|_| self.fault != Fault::NoMaps)
    }

    fn shared_bytes(&self) -> usize {
        self.shim.shared_bytes()
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<Self::Memory, KernelError> {
        self.shim.allocate(bytes, what)
    }

    fn address(&self, memory: &Self::Memory) -> DevicePointer {
        self.shim.address(memory)
    }

    fn upload(&self, to: &mut Self::Memory, at: usize, bytes: &[u8]) -> Result<(), KernelError> {
        self.shim.upload(to, at, bytes)
    }

    fn download(&self, from: &Self::Memory, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.shim.download(from, bytes)
    }

    fn begin_step(&mut self) -> Result<(), KernelError> {
        (self.took, self.has_shared) = (Duration::ZERO, false);
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        Ok(Some(self.took))
    }

    fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError> {
        self.launches += 1;
        // What tensor cores do is emulated slowly: it takes so long that it is timed once.
        self.took += Duration::from_micros(match launch.file {
            "decode_attention" if !self.has_shared => 18_000,
            "skinny" | "prefill_attention" | "prefill_groups" | "decode_attention" => 6_000,
            "prefix_attention" if self.fault == Fault::None => 15_000,
            _ if self.fault == Fault::QuickSkinny => 20_000,
            _ => 300,
        });
        self.has_shared |= launch.file == "prefix_attention";
        let sticky = self.fault == Fault::Sticky;
        let refused = || KernelError::Device {
            op: launch.kernel.to_owned(),
            reason: "planted".to_owned(),
            sticky,
        };
        match self.fault {
            Fault::Refused if is_own_kernel(launch.file) => Err(refused()),
            Fault::Sticky if launch.file == "gemv" => Err(refused()),
            Fault::QuickProposal | Fault::WrongProposal if launch.file == "skinny" => {
                Err(refused())
            }
            Fault::Idle if is_own_kernel(launch.file) => Ok(()),
            Fault::IdleLibrary if launch.file == "skinny" => Ok(()),
            Fault::IdleGroups if launch.file == "prefill_groups" => Ok(()),
            Fault::IdlePrefixes if launch.file == "prefix_attention" => Ok(()),
            Fault::IdleBoxes if launch.kernel.starts_with("prefill_bulk") => Ok(()),
            _ => self.shim.launch(launch, params),
        }
    }

    fn choices(&mut self, _: &Matmul) -> Result<u8, KernelError> {
        let has_choices = matches!(self.fault, Fault::QuickProposal | Fault::WrongProposal);
        Ok(if has_choices { 2 } else { 0 })
    }

    fn matmul(&mut self, product: &Matmul) -> Result<(), KernelError> {
        self.launches += 1;
        let is_second = product.choice.is_some_and(|choice| choice.rank == 1);
        self.took += Duration::from_micros(match self.fault {
            Fault::QuickSkinny => 20_000,
            _ if is_second => 200,
            _ => 600,
        });
        match self.fault {
            Fault::IdleLibrary => Ok(()),
            Fault::WrongProposal if is_second => {
                self.shim.matmul(&Matmul { k: product.k / 2, ..*product })
            }
            // As if a part of the sums were lost.
            Fault::ByRows => {
                self.shim.matmul(&Matmul { k: product.k - product.rows % 64, ..*product })
            }
            _ => self.shim.matmul(product),
        }
    }

    fn fp8_products(&self) -> &[Fp8Scaling] {
        self.shim.fp8_products()
    }

    fn fp8_matmul(&mut self, product: &Fp8Matmul) -> Result<(), KernelError> {
        self.launches += 1;
        self.took += Duration::from_micros(100);
        let mut product = *product;
        if self.fault == Fault::UnscaledRows {
            product.scales = product.scales.map(|[_, of_outputs]| [of_outputs; 2]);
        }
        self.shim.fp8_matmul(&product)
    }

    fn memory_info(&self) -> Result<(usize, usize), KernelError> {
        self.shim.memory_info()
    }
}

/// Outputs and inputs of a weight that is large enough to be tried.
const N: usize = 256;
const K: usize = 1024;
/// So many inputs that the library's algorithms are tried too.
const MANY_INPUTS: usize = 8192;

fn device(fault: Fault) -> Cuda<Faulty> {
    let (shim, took) = (ShimDriver::default(), Duration::ZERO);
    let driver = Faulty { shim, fault, took, launches: 0, has_shared: false };
    let limits = StepLimits { max_num_batched_tokens: 16, max_num_seqs: 4, max_model_len: 16 };
    Cuda::new(driver, Dtype::Bf16, limits).expect("the backend")
}

/// Numbers that bf16 holds.
fn numbers(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|i| (i * step % 61) as f32 / 32.0 - 1.0).collect()
}

fn tensor(numbers: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(numbers, shape, &candle_core::Device::Cpu).expect("the shape fits")
}

/// Adds to what is found out on a device with a large weight; then two rows multiplied with it
/// are right.
fn try_on(cuda: &mut Cuda<Faulty>, found: &mut Findings) {
    try_inputs(cuda, found, K);
}

/// The same with a weight of so many inputs.
fn try_inputs(cuda: &mut Cuda<Faulty>, found: &mut Findings, k: usize) {
    let weight = numbers(N * k, 7);
    let w = cuda.matrix(&[tensor(weight.clone(), &[N, k])], Dtype::Bf16.into()).expect("room");
    cuda.try_forms(&[], found, &mut |_| ()).expect("a form is right");
    // Rows of x are a bias on top of nothing.
    let (row, nothing) = (numbers(k, 5), cuda.buffer(2, 8).expect("room"));
    let narrow = cuda.matrix(&[tensor(numbers(k * 8, 3), &[k, 8])], Dtype::Bf16.into());
    let (narrow, bias) = (narrow.expect("room"), cuda.vector(&[tensor(row.clone(), &[k])]));
    let bias = bias.expect("room");
    let mut x = cuda.buffer(2, k).expect("room");
    cuda.linear(2, &nothing, &narrow, Some(&bias), &mut x).expect("a product");
    let mut out = cuda.buffer(2, N).expect("room");
    cuda.linear(2, &x, &w, None, &mut out).expect("a product");
    let got = cuda.read(&out, 2).expect("it can be read");
    for (i, got) in got.into_iter().enumerate() {
        let row_of_w = &weight[i % N * k..][..k];
        let want: f64 = row_of_w.iter().zip(&row).map(|(w, x)| f64::from(w * x)).sum();
        let near = (f64::from(got) - want).abs() <= want.abs() / 128.0 + 0.01;
        assert!(near, "output {i} is {got}, not {want}");
    }
}

fn of_rows(rows: usize) -> String {
    of_inputs(rows, K)
}

fn of_inputs(rows: usize, k: usize) -> String {
    format!("product of {rows} rows, {N} x {k}, Bf16")
}

fn is_own_kernel(file: &str) -> bool {
    matches!(file, "gemv" | "skinny")
}

fn is_gemv(form: Option<&str>) -> bool {
    form.expect("a form is right").starts_with("gemv")
}

#[test]
fn the_faster_form_is_used_and_known_forms_are_not_tried_again() {
    let mut cuda = device(Fault::None);
    let mut found = Findings::new("the shim");
    try_on(&mut cuda, &mut found);
    for rows in 1..=4 {
        assert!(is_gemv(found.best(&of_rows(rows))), "{found:?}");
    }
    assert_eq!(found.best(&of_rows(16)), Some("cuBLAS"));
    let mut again = device(Fault::None);
    try_on(&mut again, &mut found);
    // Nothing but what multiplies the rows.
    assert_eq!(again.driver().launches, 3);
}

/// Of two rows and of sixteen, and what lies between; one row has no such form.
#[test]
fn the_kernel_on_tensor_cores_is_used_where_it_is_faster() {
    let mut found = Findings::new("the shim");
    try_on(&mut device(Fault::QuickSkinny), &mut found);
    for rows in [2, 3, 4, 8, 16] {
        assert_eq!(found.best(&of_rows(rows)), Some("skinny"));
    }
    assert!(is_gemv(found.best(&of_rows(1))));
}

#[test]
fn a_form_that_is_refused_or_wrong_is_named_and_not_used() {
    for (fault, word) in [(Fault::Refused, "planted"), (Fault::Idle, "output 0 of row 0")] {
        let mut found = Findings::new("the shim");
        try_on(&mut device(fault), &mut found);
        let faults: Vec<_> = found.trials().iter().filter_map(|t| Some((t, t.fault()?))).collect();
        // One kernel of up to four rows, in two ways of one; the other of 2, 3, 4, 8 and 16.
        assert_eq!(faults.len(), 5 + 5, "{faults:?}");
        for (trial, fault) in faults {
            let file = trial.form.split(',').next().expect("a name");
            assert!(is_own_kernel(file) && fault.contains(word), "{trial:?}");
        }
        for rows in [1, 2, 3, 4, 16] {
            assert_eq!(found.best(&of_rows(rows)), Some("cuBLAS"));
        }
    }
}

/// Attention of prompts by groups of warps and with copies of boxes, where these are right; what
/// has no such form is not tried.
#[test]
fn attention_of_prompts_is_tried_too() {
    let operation = "attention of prompts, heads of 64, Bf16";
    let is_of_prompts = |trial: &&Trial| trial.operation.starts_with("attention of prompts");
    for (fault, num_faults, best, word) in [
        (Fault::None, 0, "groups of warps, bulk copies", ""),
        (Fault::IdleBoxes, 1, "groups of warps", "of row 0 is NaN"),
        (Fault::NoMaps, 1, "groups of warps", "a map of a tensor"),
        (Fault::IdleGroups, 2, "warps", "of row 0 is NaN"),
    ] {
        let mut found = Findings::new("the shim");
        let heads = [(64, CacheDtype::Bf16), (80, CacheDtype::Bf16), (128, CacheDtype::Fp8E4m3)];
        device(fault).try_forms(&heads, &mut found, &mut |_| ()).expect("a form is right");
        assert_eq!(found.best(operation), Some(best), "{found:?}");
        assert_eq!(found.trials().iter().filter(is_of_prompts).count(), 3, "{found:?}");
        let faults: Vec<_> = found.trials().iter().filter_map(Trial::fault).collect();
        assert_eq!(faults.len(), num_faults, "{faults:?}");
        assert!(faults.iter().all(|how| how.contains(word)), "{faults:?}");
    }
}

/// Prefixes are shared where that is right, and faster; of another cache it is another question.
#[test]
fn sharing_prefixes_is_tried_too() {
    let heads = [(64, CacheDtype::Bf16), (96, CacheDtype::Fp8E4m3)];
    for (fault, num_faults, best) in [
        (Fault::None, 0, "each by itself"),
        (Fault::QuickPrefixes, 0, "together"),
        (Fault::IdlePrefixes, 2, "each by itself"),
    ] {
        let mut found = Findings::new("the shim");
        let mut cuda = device(fault);
        cuda.try_forms(&heads, &mut found, &mut |_| ()).expect("a form is right");
        for (head_dim, cache) in heads {
            let operation = format!(
                "attention over shared prefixes, heads of {head_dim}, Bf16, cache {cache:?}"
            );
            assert_eq!(found.best(&operation), Some(best), "{fault:?}: {found:?}");
            let params = AttentionParams {
                num_heads: 8,
                num_kv_heads: 2,
                head_dim,
                scale: 1.0,
                mask: Mask::Causal,
                soft_cap: None,
            };
            let least = |params| cuda.least_shared(&AttentionKind { params, group: 0 }, cache);
            // Eight chunks of each of two multiprocessors, read by two KV heads at once.
            let expected = (best == "together").then_some(8 * 256);
            assert_eq!(least(params), expected, "{fault:?}");
            assert_eq!(least(AttentionParams { head_dim: 128, ..params }), None, "not tried");
            assert_eq!(least(AttentionParams { mask: Mask::Sliding(300), ..params }), None);
            assert_eq!(least(AttentionParams { num_heads: 34, ..params }), None);
        }
        let faults: Vec<_> = found.trials().iter().filter_map(Trial::fault).collect();
        assert_eq!(faults.len(), num_faults, "{faults:?}");
    }
}

/// Q, K and V of few rows are rotated in the launch of their product where that is right.
#[test]
fn rotations_are_tried_too() {
    let heads = [(64, CacheDtype::Bf16), (80, CacheDtype::Fp8E4m3)];
    for (fault, num_faults, best) in
        [(Fault::None, 0, "in its launch"), (Fault::Idle, 2, "after it")]
    {
        let mut found = Findings::new("the shim");
        device(fault).try_forms(&heads, &mut found, &mut |_| ()).expect("a form is right");
        for (head_dim, cache) in heads {
            let operation = format!(
                "rotation of a product of few rows, heads of {head_dim}, Bf16, cache {cache:?}"
            );
            assert_eq!(found.best(&operation), Some(best), "{fault:?}: {found:?}");
        }
        let faults: Vec<_> = found.trials().iter().filter_map(Trial::fault).collect();
        assert_eq!(faults.len(), num_faults, "{faults:?}");
    }
}

/// Rows that are normed in the product's launch are those that were normed before it, and other
/// forms leave them to two.
#[test]
fn few_rows_are_normed_in_their_product() {
    use sconce_kernels::{
        Activation,
        cuda::{GemvForm, ProductForm},
    };
    let mut cuda = device(Fault::None);
    let w = cuda.matrix(&[tensor(numbers(N * K, 7), &[N, K])], Dtype::Bf16.into()).expect("room");
    let norm = cuda.vector(&[tensor(numbers(K, 11), &[K])]).expect("room");
    let nothing = cuda.buffer(3, 8).expect("room");
    let narrow = cuda.matrix(&[tensor(numbers(K * 8, 3), &[K, 8])], Dtype::Bf16.into());
    let bias = cuda.vector(&[tensor(numbers(K, 5), &[K])]).expect("room");
    let mut x = cuda.buffer(3, K).expect("room");
    cuda.linear(3, &nothing, &narrow.expect("room"), Some(&bias), &mut x).expect("a product");
    let forms = [ProductForm::FewRows(GemvForm::DEFAULT), ProductForm::Skinny];
    let activations = [None, Some(Activation::Silu)];
    for (form, activation) in forms.iter().flat_map(|form| activations.map(|of| (form, of))) {
        cuda.use_product_form(Some(*form));
        let outputs = if activation.is_some() { N / 2 } else { N };
        let (mut one, mut two) =
            (cuda.buffer(3, outputs).expect("room"), cuda.buffer(3, outputs).expect("room"));
        let is_one = cuda.linear_of_normed(3, &x, (&norm, 1e-5), &w, None, activation, &mut one);
        assert!(is_one.expect("a product"));
        let mut normed = cuda.buffer(3, K).expect("room");
        cuda.rms_norm(3, &x, &norm, 1e-5, &mut normed).expect("a norm");
        match activation {
            None => cuda.linear(3, &normed, &w, None, &mut two),
            Some(activation) => cuda.linear_gated(3, &normed, &w, None, activation, None, &mut two),
        }
        .expect("a product");
        let (one, two) = (cuda.read(&one, 3).expect("read"), cuda.read(&two, 3).expect("read"));
        for (one, two) in one.into_iter().zip(two) {
            assert!(
                (one - two).abs() <= two.abs() / 64.0 + 0.05,
                "{form}, {activation:?}: {one}, {two}"
            );
        }
    }
    cuda.use_product_form(Some(ProductForm::Library));
    let mut out = cuda.buffer(3, N).expect("room");
    let is_one = cuda.linear_of_normed(3, &x, (&norm, 1e-5), &w, None, None, &mut out);
    assert!(!is_one.expect("nothing is done"));
}

/// Of those that the library proposes the fastest right one, by the number of rows.
#[test]
fn a_faster_algorithm_is_used_if_it_is_right() {
    let second = "cuBLASLt, choice 1";
    for (fault, best) in [(Fault::QuickProposal, second), (Fault::WrongProposal, "cuBLAS")] {
        let mut found = Findings::new("the shim");
        let mut cuda = device(fault);
        try_inputs(&mut cuda, &mut found, MANY_INPUTS);
        for rows in [8, 16] {
            assert_eq!(found.best(&of_inputs(rows, MANY_INPUTS)), Some(best));
        }
        // No step has so many rows.
        assert_eq!(found.best(&of_inputs(32, MANY_INPUTS)), None);
        let wrong = found.trials().iter().find(|trial| trial.form == second).expect("it is tried");
        assert_eq!(wrong.fault().is_some(), fault == Fault::WrongProposal, "{wrong:?}");
    }
}

#[test]
fn a_product_without_a_right_form_is_an_error() {
    let mut cuda = device(Fault::IdleLibrary);
    let _w = cuda.matrix(&[tensor(numbers(N * K, 7), &[N, K])], Dtype::Bf16.into());
    let mut found = Findings::new("the shim");
    let error =
        cuda.try_forms(&[], &mut found, &mut |_| ()).expect_err("8 rows have no other form");
    assert!(error.to_string().starts_with(&of_rows(8)), "{error}");
    assert!(is_gemv(found.best(&of_rows(4))));
}

/// What was kept before the process ended says which form it was, and it is not tried again.
#[test]
fn a_form_that_ends_the_process_is_not_tried_again() {
    let mut cuda = device(Fault::Sticky);
    let _w = cuda.matrix(&[tensor(numbers(N * K, 7), &[N, K])], Dtype::Bf16.into());
    let (mut found, mut kept) = (Findings::new("the shim"), Findings::default());
    let lost = cuda.try_forms(&[], &mut found, &mut |now| kept = now.clone());
    assert!(matches!(lost, Err(KernelError::Device { sticky: true, .. })));
    let last = kept.trials().last().expect("what was being tried");
    assert!(matches!(last.verdict, Verdict::Failed(_)) && last.form.starts_with("gemv"));
    let failed = (last.operation.clone(), last.form.clone());
    try_on(&mut device(Fault::None), &mut kept);
    let known = kept.trials().iter().find(|t| (t.operation.clone(), t.form.clone()) == failed);
    assert!(known.expect("it is known").fault().is_some());
}

/// By tensor cores too: a form that scales wrongly is named, and another one used.
#[test]
fn every_form_of_a_product_with_fp8_is_tried() {
    let mut cuda = device(Fault::UnscaledRows);
    let _w = cuda.matrix(&[tensor(numbers(N * K, 7), &[N, K])], WeightDtype::Fp8E4m3);
    let mut found = Findings::new("the shim");
    cuda.try_forms(&[], &mut found, &mut |_| ()).expect("a form is right");
    let forms = |rows| {
        let operation = format!("{} and fp8", of_rows(rows));
        let of_operation = found.trials().iter().filter(|trial| trial.operation == operation);
        let forms: Vec<_> = of_operation.map(|t| (t.form.clone(), t.fault())).collect();
        (forms, found.best(&operation).expect("a form is right"))
    };
    let (of_many, best) = forms(16);
    let names: Vec<_> = of_many.iter().map(|(form, _)| form.as_str()).collect();
    let all = ["cuBLASLt in fp8", "cuBLASLt in fp8, scaled after it", "cuBLAS"];
    assert_eq!(names, all);
    let wrong = of_many[0].1.as_deref().expect("rows are not scaled");
    assert!(wrong.contains("wrong results"), "{of_many:?}");
    assert!(of_many[1..].iter().all(|(_, fault)| fault.is_none()), "{of_many:?}");
    assert_eq!(best, all[1]);
    let (of_few, _) = forms(2);
    assert!(of_few[0].0.starts_with("gemv") && of_few.len() == 4, "{of_few:?}");
    assert!(of_few[0].1.is_none() && of_few[2].1.is_none(), "{of_few:?}");
}

/// The first row of products of 1, 3 and 130 equal rows, with and without a residual, on a
/// device whose library gives other results for another number of rows.
fn first_rows(is_deterministic: bool) -> [Vec<f32>; 3] {
    const COLS: usize = 64;
    const OUTPUTS: usize = 16;
    [1, 3, 130].map(|rows| {
        let mut cuda = device(Fault::ByRows).deterministic(is_deterministic);
        let square =
            cuda.matrix(&[tensor(numbers(COLS * COLS, 3), &[COLS; 2])], Dtype::Bf16.into());
        let w = cuda
            .matrix(&[tensor(numbers(OUTPUTS * COLS, 7), &[OUTPUTS, COLS])], Dtype::Bf16.into());
        let (square, w) = (square.expect("room"), w.expect("room"));
        let bias = cuda.vector(&[tensor(numbers(COLS, 5), &[COLS])]).expect("room");
        let mut x = cuda.buffer(rows, COLS).expect("room");
        let mut out = cuda.buffer(rows, OUTPUTS).expect("room");
        let mut logits = cuda.logits_buffer(rows, OUTPUTS).expect("room");
        let nothing = cuda.buffer(rows, COLS).expect("room");
        cuda.linear(rows, &nothing, &square, Some(&bias), &mut x).expect("a product");
        cuda.linear(rows, &x, &w, None, &mut out).expect("a product");
        cuda.linear_add(rows, &x, &w, None, &mut out).expect("a product");
        cuda.linear(rows, &x, &w, None, &mut logits).expect("a product");
        let of_rows = [cuda.read(&out, rows), cuda.read(&logits, rows)];
        let of_rows = of_rows.map(|read| read.expect("it can be read"));
        for read in of_rows.iter().filter(|_| is_deterministic) {
            // Rows are equal, so their results are.
            assert!(read.chunks(OUTPUTS).all(|row| row == &read[..OUTPUTS]), "{read:?}");
        }
        of_rows.map(|read| read[..OUTPUTS].to_vec()).concat()
    })
}

#[test]
fn no_product_depends_on_the_number_of_rows_where_none_may() {
    let [one, three, many] = first_rows(true);
    assert!(one == three && one == many, "{one:?}, {three:?}, {many:?}");
    let [one, three, many] = first_rows(false);
    assert!(one != three && one != many && three != many, "the device is no test");
}
