//! Which experts rows go to, on the device.

use super::{
    AddExperts, Cuda, CudaBuffer, CudaMatrix, DevicePointer, Driver, ExpertProduct, Launch, Route,
    SortByExpert, names::of_dtype, ops::pieces, word,
};
use crate::{Activation, Dtype, KernelError, Routing};

/// The experts of each row of a step.
pub struct CudaRoutes<M> {
    routing: Routing,
    capacity: usize,
    /// Rows that were routed last.
    rows: usize,
    experts: DevicePointer,
    weights: DevicePointer,
    sources: DevicePointer,
    places: DevicePointer,
    starts: DevicePointer,
    /// Keeps them where they are.
    _memory: [M; 5],
}

impl<M> CudaRoutes<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        capacity: usize,
        routing: Routing,
    ) -> Result<Self, KernelError> {
        let Routing { num_experts, top_k, .. } = routing;
        if num_experts > Route::MAX_EXPERTS {
            return Err(KernelError::Unsupported {
                what: format!("{num_experts} experts"),
                device: "CUDA",
                accepted: "up to 512 are",
            });
        }
        routing.check()?;
        let allocate = |words: usize| driver.allocate(words * size_of::<u32>(), "routes");
        let of_choices = capacity * top_k;
        let memory = [
            allocate(of_choices)?,
            allocate(of_choices)?,
            allocate(of_choices)?,
            allocate(of_choices)?,
            allocate(num_experts + 1)?,
        ];
        let [experts, weights, sources, places, starts] =
            [0, 1, 2, 3, 4].map(|i| driver.address(&memory[i]));
        let rows = 0;
        let _memory = memory;
        Ok(Self { routing, capacity, rows, experts, weights, sources, places, starts, _memory })
    }

    fn check(&self, op: &'static str, rows: usize) -> Result<(), KernelError> {
        if self.rows == rows {
            return Ok(());
        }
        let (got, expected) = (self.rows.to_string(), rows.to_string());
        Err(KernelError::Shape { op, what: "rows that were routed", got, expected })
    }

    /// The rows of an expert's weight, a multiple of `unit`.
    fn weight_rows(
        &self,
        op: &'static str,
        w: &CudaMatrix<M>,
        unit: usize,
    ) -> Result<usize, KernelError> {
        let Routing { num_experts, .. } = self.routing;
        if w.n.is_multiple_of(num_experts * unit) {
            return Ok(w.n / num_experts);
        }
        let expected = format!("a multiple of {unit} for each of {num_experts} experts");
        Err(KernelError::Shape { op, what: "rows of w", got: w.n.to_string(), expected })
    }
}

impl<D: Driver> Cuda<D> {
    pub(super) fn route_rows(
        &mut self,
        rows: usize,
        scores: &CudaBuffer<D::Memory>,
        routes: &mut CudaRoutes<D::Memory>,
    ) -> Result<(), KernelError> {
        const OP: &str = "route";
        let Routing { num_experts, top_k, normalise } = routes.routing;
        scores.check(OP, "scores", (rows, num_experts), Dtype::F32)?;
        if rows > routes.capacity {
            let (got, expected) = (rows.to_string(), format!("at most {}", routes.capacity));
            return Err(KernelError::Shape { op: OP, what: "rows", got, expected });
        }
        routes.rows = rows;
        let params = Route {
            scores: scores.address,
            experts: routes.experts,
            weights: routes.weights,
            rows: word(rows),
            num_experts: word(num_experts),
            top_k: word(top_k),
            normalise: u32::from(normalise),
        };
        let grid = |warps: usize, threads: u32| [word(warps).div_ceil(threads / 32), 1];
        let launch = |kernel, grid, threads| Launch {
            file: "route",
            kernel,
            grid,
            threads,
            shared_bytes: 0,
        };
        self.launch(&launch("route", grid(rows, 128), 128), &params)?;
        if rows == 0 {
            return Ok(());
        }
        let params = SortByExpert {
            experts: routes.experts,
            sources: routes.sources,
            places: routes.places,
            starts: routes.starts,
            choices: word(rows * top_k),
            num_experts: word(num_experts),
            top_k: word(top_k),
            padding: 0,
        };
        self.launch(&launch("sort_by_expert", grid(num_experts, 256), 256), &params)
    }

    pub(super) fn experts_gated_rows(
        &mut self,
        rows: usize,
        x: &CudaBuffer<D::Memory>,
        routes: &CudaRoutes<D::Memory>,
        w: &CudaMatrix<D::Memory>,
        activation: Activation,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<(), KernelError> {
        const OP: &str = "experts_gated";
        routes.check(OP, rows)?;
        let n = routes.weight_rows(OP, w, 32)?;
        x.check(OP, "x", (rows, w.k), self.dtype)?;
        out.check(OP, "out", (rows, routes.routing.top_k * n / 2), self.dtype)?;
        let kernel = match (activation, w.scales) {
            (Activation::Silu, None) => of_dtype!("experts_silu", self.dtype),
            (Activation::Silu, Some(_)) => of_dtype!("experts_silu", self.dtype, "_e4m3"),
            (Activation::GeluTanh, None) => of_dtype!("experts_gelu", self.dtype),
            (Activation::GeluTanh, Some(_)) => {
                return Err(KernelError::Unsupported {
                    what: "experts in fp8 with GELU".to_owned(),
                    device: "CUDA",
                    accepted: "with SiLU they are",
                });
            }
        };
        let operands = (x.address, routes.sources, out.address);
        self.expert_product(kernel, (rows, n / 2), operands, routes, w)
    }

    pub(super) fn experts_add_rows(
        &mut self,
        rows: usize,
        x: &CudaBuffer<D::Memory>,
        routes: &CudaRoutes<D::Memory>,
        w: &CudaMatrix<D::Memory>,
        scratch: &mut CudaBuffer<D::Memory>,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<(), KernelError> {
        const OP: &str = "experts_add";
        let Routing { top_k, .. } = routes.routing;
        routes.check(OP, rows)?;
        let n = routes.weight_rows(OP, w, 16)?;
        x.check(OP, "x", (rows, top_k * w.k), self.dtype)?;
        scratch.check(OP, "scratch", (rows, top_k * n), self.dtype)?;
        out.check(OP, "out", (rows, n), self.dtype)?;
        let operands = (x.address, DevicePointer::NULL, scratch.address);
        let kernel = match w.scales {
            None => of_dtype!("experts", self.dtype),
            Some(_) => of_dtype!("experts", self.dtype, "_e4m3"),
        };
        self.expert_product(kernel, (rows, n), operands, routes, w)?;
        let pieces = pieces(OP, n)?;
        let params = AddExperts {
            x: scratch.address,
            weights: routes.weights,
            places: routes.places,
            out: out.address,
            pieces: word(pieces),
            rows: word(rows),
            top_k: word(top_k),
            padding: 0,
        };
        let kernel = of_dtype!("add_experts", self.dtype);
        self.launch(&self.elementwise("experts", kernel, rows * pieces), &params)
    }

    /// `outputs` of each choice, of rows in the order of `sources`, or of places.
    fn expert_product(
        &mut self,
        kernel: &'static str,
        (rows, outputs): (usize, usize),
        (x, sources, out): (DevicePointer, DevicePointer, DevicePointer),
        routes: &CudaRoutes<D::Memory>,
        w: &CudaMatrix<D::Memory>,
    ) -> Result<(), KernelError> {
        let Routing { num_experts, top_k, .. } = routes.routing;
        let (experts, n) = (word(num_experts), word(w.n / num_experts));
        let params = ExpertProduct {
            x,
            w: w.address,
            scales: w.scales.map_or(DevicePointer::NULL, |scales| scales.address),
            sources,
            starts: routes.starts,
            out,
            num_experts: experts,
            n,
            k: word(w.k),
            runs: w.scales.map_or(0, |scales| word(scales.runs)),
        };
        let is_gated = word(outputs) != n;
        let launch = Launch {
            file: "experts",
            kernel,
            grid: ExpertProduct::grid(word(outputs), is_gated, word(rows * top_k), experts),
            threads: ExpertProduct::THREADS,
            shared_bytes: 0,
        };
        self.launch(&launch, &params)
    }
}
