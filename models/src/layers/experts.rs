//! Feed-forward layers of experts, of which each row goes to a few.

use sconce_kernels::{Activation, Backend, KernelError, Routing};

use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// The sizes of a layer of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertsConfig {
    pub(crate) hidden_size: usize,
    /// Of each expert.
    pub(crate) intermediate_size: usize,
    pub(crate) routing: Routing,
}

/// A mixture of SwiGLU experts (Shazeer et al., 2017; Fedus et al., 2021): a row's are chosen
/// by the softmax of a projection, and summed with what each counts for.
pub(crate) struct Experts<W: Weights> {
    config: ExpertsConfig,
    gate: W::Matrix,
    /// Each expert's gate_proj and up_proj on top of each other, and so all of them.
    gate_up_proj: W::Matrix,
    down_proj: W::Matrix,
}

impl<W: Weights> Experts<W> {
    /// Experts stand in the checkpoint one by one, or, as transformers 5 has them in memory,
    /// all in two tensors.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        config: ExpertsConfig,
    ) -> Result<Self, ModelError> {
        let ExpertsConfig { hidden_size, intermediate_size, routing } = config;
        let Routing { num_experts, top_k, .. } = routing;
        // What is between them has a column for each of a row's choices.
        s.projection(top_k * hidden_size.max(intermediate_size));
        let gate = s.exact_matrix(&[("gate", num_experts)], hidden_size)?;
        let mut s = s.at("experts");
        let both = (num_experts, 2 * intermediate_size, hidden_size);
        let back = (num_experts, hidden_size, intermediate_size);
        let (gate_up_proj, down_proj) = if s.has("gate_up_proj") {
            (s.stack("gate_up_proj", both)?, s.stack("down_proj", back)?)
        } else {
            let mut of_each = |names: &[&str], n, k| {
                let names: Vec<String> = (0..num_experts)
                    .flat_map(|expert| names.iter().map(move |name| format!("{expert}.{name}")))
                    .collect();
                let parts: Vec<_> = names.iter().map(|name| (name.as_str(), n)).collect();
                s.matrix(&parts, k)
            };
            let gate_up = of_each(&["gate_proj", "up_proj"], intermediate_size, hidden_size)?;
            (gate_up, of_each(&["down_proj"], hidden_size, intermediate_size)?)
        };
        Ok(Self { config, gate, gate_up_proj, down_proj })
    }
}

impl<B: Backend> Experts<B> {
    /// Of `x [rows, hidden_size]`, added to the residual `h`, of the same shape.
    pub(crate) fn add_to(
        &self,
        p: &mut Pass<'_, B>,
        x: Buf,
        h: &mut Buf,
    ) -> Result<(), KernelError> {
        let ExpertsConfig { hidden_size, intermediate_size, routing } = self.config;
        let Routing { num_experts, top_k, .. } = routing;
        let mut scores = p.ws.take_scores(p.ops, num_experts)?;
        let (from, to) = p.ws.pair(&x, &mut scores);
        p.ops.linear(p.rows, from, &self.gate, None, to)?;
        let mut routes = p.ws.take_routes(p.ops, routing)?;
        p.ops.route(p.rows, p.ws.get(&scores), &mut routes)?;
        p.ws.free(scores);
        let mut gated = p.take(top_k * intermediate_size)?;
        let (from, to) = p.ws.pair(&x, &mut gated);
        let silu = Activation::Silu;
        p.ops.experts_gated(p.rows, from, &routes, &self.gate_up_proj, silu, to)?;
        p.ws.free(x);
        let mut outputs = p.take(top_k * hidden_size)?;
        let (from, scratch, to) = p.ws.triple(&gated, &mut outputs, h);
        p.ops.experts_add(p.rows, from, &routes, &self.down_proj, scratch, to)?;
        p.ws.free(gated);
        p.ws.free(outputs);
        p.ws.free_routes(routing, routes);
        Ok(())
    }
}
