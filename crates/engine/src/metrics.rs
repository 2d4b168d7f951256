//! What the engine counts. Names, labels and buckets are vLLM's where the
//! meaning is the same, so that dashboards carry over.

use prometheus::{
    Counter, Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector,
    proto::{Metric, MetricFamily},
};
use sconce_types::{NotReady, SinkState};

pub(crate) use crate::tenant_metrics::TenantMetrics;
use crate::tenant_metrics::{TenantFamilies, TenantUsage};

/// Labels of `http_requests_total`.
pub const HTTP_METHOD_LABELS: [&str; 3] = ["handler", "method", "status"];

/// Why spans of traces are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceLoss {
    /// The queue had no room.
    QueueFull,
    /// The collector was not reached, or refused them all.
    ExportFailed,
    /// The collector took others without them.
    Rejected,
    /// They came after the end.
    Shutdown,
}

impl TraceLoss {
    const ALL: [Self; 4] = [Self::QueueFull, Self::ExportFailed, Self::Rejected, Self::Shutdown];

    /// The label of [`Metrics::trace_spans_dropped`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
        }
    }
}

pub(crate) const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// The first three are below vLLM's: a small model's tokens are a millisecond apart.
const ITL_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const LATENCY_BUCKETS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKEN_BUCKETS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0,
];
const ITERATION_BUCKETS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0];
/// Far below those of vLLM's steps: a small model's step takes a millisecond.
const STEP_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// The engine's metrics, each labelled with the model's name. They live in a
/// registry of their own, so one process can hold several engines.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Apart: not everybody may see them.
    tenant_registry: Registry,
    tenants: TenantFamilies,
    /// Sequences in the running batch.
    pub num_requests_running: IntGauge,
    /// Requests that wait for a slot or for blocks.
    pub num_requests_waiting: IntGauge,
    /// Share of KV-cache blocks in use; 1 is full.
    pub kv_cache_usage_perc: Gauge,
    /// KV-cache blocks in use.
    pub kv_blocks_used: IntGauge,
    /// Sequences preempted.
    pub num_preemptions: IntCounter,
    /// Prompt tokens looked for in the prefix cache.
    pub prefix_cache_queries: IntCounter,
    /// Prompt tokens found there.
    pub prefix_cache_hits: IntCounter,
    /// Prompt tokens processed, each in the step that did: computed, or found in the prefix
    /// cache.
    pub prompt_tokens: IntCounter,
    /// Generated tokens.
    pub generation_tokens: IntCounter,
    /// Requests that ended, by `finished_reason`.
    pub request_success: IntCounterVec,
    /// Requests whose logits were not finite.
    pub corrupted_requests: IntCounter,
    /// Executors that were lost and built anew.
    pub engine_restarts: IntCounter,
    /// Requests that wait, by what for: `capacity`, or why they are not ready.
    pub num_requests_waiting_by_reason: IntGaugeVec,
    /// Seconds until requests that were not ready were, by what they waited for.
    pub not_ready_time: HistogramVec,
    /// Requests that ended because they were not ready in time, by what they waited for.
    pub not_ready_expired: IntCounterVec,
    /// Device time that no request is billed: of rows whose requests had ended meanwhile.
    pub discarded_device_seconds: Counter,
    /// Tokens of context that decodes had in common with another, and did not read again.
    pub shared_prefix_tokens: IntCounter,
    /// Joules that no request is billed: used while no step ran, or unread.
    pub idle_energy_joules: Counter,
    /// Whether the ledger cannot be written at the moment.
    pub ledger_failing: IntGauge,
    /// Entries that the ledger has lost for good.
    pub ledger_lost: IntGauge,
    /// How often the ledger was deleted, replaced or damaged under the server.
    pub ledger_replaced: IntGauge,
    /// Forms of operations that the device does not compute right, and so does not use.
    unused_forms: IntGaugeVec,
    /// Tokens computed in a step.
    pub iteration_tokens: Histogram,
    /// Seconds from submission to the first token.
    pub time_to_first_token: Histogram,
    /// Seconds between tokens.
    pub inter_token_latency: Histogram,
    /// Mean seconds per output token after the first, by request.
    pub time_per_output_token: Histogram,
    /// Seconds from submission to the end.
    pub e2e_latency: Histogram,
    /// Seconds from submission to the first step.
    pub queue_time: Histogram,
    /// Seconds from the first step to the first token.
    pub prefill_time: Histogram,
    /// Seconds from the first token to the last.
    pub decode_time: Histogram,
    /// Tokens in a prompt.
    pub request_prompt_tokens: Histogram,
    /// Tokens generated for a request.
    pub request_generation_tokens: Histogram,
    /// `max_tokens` of a request.
    pub request_max_tokens: Histogram,
    /// `n` of a request, which its server knows.
    pub request_params_n: Histogram,
    /// Times that a request was preempted.
    pub request_num_preemptions: Histogram,
    /// Seconds from the first step to the end.
    pub inference_time: Histogram,
    /// Requests that were not taken, by reason.
    pub admission_rejections: IntCounterVec,
    /// Seconds that a step took in the executor.
    pub step_time: Histogram,
    /// Seconds that a step took outside the executor.
    pub step_overhead: Histogram,
    /// Spans that a collector has taken, which the server sends.
    pub trace_spans_exported: IntCounter,
    /// Spans that no collector has taken, by [`TraceLoss::name`].
    pub trace_spans_dropped: IntCounterVec,
    /// HTTP requests, by [`HTTP_METHOD_LABELS`].
    pub http_requests: IntCounterVec,
    /// Seconds until the response's head was ready, by handler and method.
    pub http_duration: HistogramVec,
}

impl Metrics {
    /// Registers all metrics for a model of this name and a pool of `num_blocks`.
    #[must_use]
    pub fn new(model_name: &str, num_blocks: usize) -> Self {
        let registry = Registry::new();
        let r = Registrar { registry: &registry, model_name };
        r.info_gauge(num_blocks);
        let tenant_registry = Registry::new();
        let tenants = TenantFamilies::new(&Registrar { registry: &tenant_registry, model_name });
        let waiting_by_reason: IntGaugeVec = r.register(IntGaugeVec::new(
            r.opts(
                "vllm:num_requests_waiting_by_reason",
                "Number of requests waiting to be processed, by what they wait for.",
            ),
            &["reason"],
        ));
        // Dashboards look for them before there are any.
        let reasons = NotReady::ALL.into_iter().map(NotReady::name);
        for reason in std::iter::once("capacity").chain(reasons) {
            waiting_by_reason.with_label_values(&[reason]).set(0);
        }
        let trace_spans_dropped = r.counter_vec(
            "sconce:trace_spans_dropped_total",
            "Spans that were not sent to the collector of traces, or not taken, by reason.",
            &["reason"],
        );
        for loss in TraceLoss::ALL {
            trace_spans_dropped.with_label_values(&[loss.name()]);
        }
        Self {
            tenants,
            tenant_registry,
            num_requests_running: r.int_gauge(
                "vllm:num_requests_running",
                "Number of requests in model execution batches.",
            ),
            num_requests_waiting: r.int_gauge(
                "vllm:num_requests_waiting",
                "Number of requests waiting to be processed.",
            ),
            kv_cache_usage_perc: r
                .gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
            kv_blocks_used: r.int_gauge("sconce:kv_blocks_used", "KV-cache blocks in use."),
            num_preemptions: r
                .counter("vllm:num_preemptions_total", "Preemptions of running requests."),
            prefix_cache_queries: r.counter(
                "vllm:prefix_cache_queries_total",
                "Prefix cache queries, in terms of number of queried tokens.",
            ),
            prefix_cache_hits: r.counter(
                "vllm:prefix_cache_hits_total",
                "Prefix cache hits, in terms of number of cached tokens.",
            ),
            prompt_tokens: r.counter("vllm:prompt_tokens_total", "Prompt tokens processed."),
            generation_tokens: r
                .counter("vllm:generation_tokens_total", "Generation tokens processed."),
            request_success: r.counter_vec(
                "vllm:request_success_total",
                "Requests that ended, by reason.",
                &["finished_reason"],
            ),
            corrupted_requests: r.counter(
                "vllm:corrupted_requests_total",
                "Requests ended because their logits were not finite.",
            ),
            engine_restarts: r.counter(
                "sconce:engine_restarts_total",
                "Executors that were lost and built anew.",
            ),
            num_requests_waiting_by_reason: waiting_by_reason,
            not_ready_time: r.histogram_vec(
                "sconce:request_not_ready_time_seconds",
                "Time until a request that was not ready to be scheduled was, by reason.",
                &["reason"],
                LATENCY_BUCKETS,
            ),
            not_ready_expired: r.counter_vec(
                "sconce:request_not_ready_expired_total",
                "Requests that were not ready to be scheduled in time, by reason.",
                &["reason"],
            ),
            discarded_device_seconds: r.register(Counter::with_opts(r.opts(
                "sconce:discarded_device_seconds_total",
                "Device time of rows whose requests had ended, which no request is billed.",
            ))),
            idle_energy_joules: r.register(Counter::with_opts(r.opts(
                "sconce:idle_energy_joules_total",
                "Energy that no request is billed: while no step ran, or while it could not be read.",
            ))),
            ledger_failing: r.int_gauge(
                "sconce:ledger_failing",
                "1 while the ledger cannot be written; what it is told is kept in memory.",
            ),
            ledger_lost: r
                .int_gauge("sconce:ledger_lost_entries", "Entries that the ledger has lost."),
            ledger_replaced: r.int_gauge(
                "sconce:ledger_replaced",
                "Times that the ledger was found deleted, replaced or damaged.",
            ),
            unused_forms: r.register(IntGaugeVec::new(
                r.opts(
                    "sconce:unused_kernel_forms",
                    "Forms of operations that gave wrong results or failed on this device: 1 each.",
                ),
                &["operation", "form"],
            )),
            iteration_tokens: r.histogram(
                "vllm:iteration_tokens_total",
                "Prompt tokens computed and tokens generated in an engine step.",
                ITERATION_BUCKETS,
            ),
            time_to_first_token: r.histogram(
                "vllm:time_to_first_token_seconds",
                "Time to first token.",
                TTFT_BUCKETS,
            ),
            inter_token_latency: r.histogram(
                "vllm:inter_token_latency_seconds",
                "Inter-token latency.",
                ITL_BUCKETS,
            ),
            time_per_output_token: r.histogram(
                "vllm:request_time_per_output_token_seconds",
                "Mean time per output token of a request, after its first.",
                ITL_BUCKETS,
            ),
            e2e_latency: r.histogram(
                "vllm:e2e_request_latency_seconds",
                "End-to-end request latency.",
                LATENCY_BUCKETS,
            ),
            queue_time: r.histogram(
                "vllm:request_queue_time_seconds",
                "Time spent waiting for the first step.",
                LATENCY_BUCKETS,
            ),
            prefill_time: r.histogram(
                "vllm:request_prefill_time_seconds",
                "Time from the first step to the first token.",
                LATENCY_BUCKETS,
            ),
            decode_time: r.histogram(
                "vllm:request_decode_time_seconds",
                "Time from the first token to the last.",
                LATENCY_BUCKETS,
            ),
            request_prompt_tokens: r.histogram(
                "vllm:request_prompt_tokens",
                "Prompt tokens of a request.",
                TOKEN_BUCKETS,
            ),
            request_generation_tokens: r.histogram(
                "vllm:request_generation_tokens",
                "Generated tokens of a request.",
                TOKEN_BUCKETS,
            ),
            request_max_tokens: r.histogram(
                "vllm:request_params_max_tokens",
                "The max_tokens of a request.",
                TOKEN_BUCKETS,
            ),
            request_params_n: r.histogram(
                "vllm:request_params_n",
                "The n of a request.",
                &[1.0, 2.0, 5.0, 10.0, 20.0],
            ),
            request_num_preemptions: r.histogram(
                "vllm:request_num_preemptions",
                "Times that a request was preempted.",
                &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0],
            ),
            inference_time: r.histogram(
                "vllm:request_inference_time_seconds",
                "Time from the first step to the end.",
                LATENCY_BUCKETS,
            ),
            admission_rejections: r.counter_vec(
                "vllm:admission_rejections_total",
                "Requests that were not taken, by reason.",
                &["reason"],
            ),
            step_time: r.histogram(
                "sconce:step_time_seconds",
                "Time of an engine step in the executor.",
                STEP_BUCKETS,
            ),
            step_overhead: r.histogram(
                "sconce:step_overhead_seconds",
                "Time of an engine step outside the executor.",
                STEP_BUCKETS,
            ),
            shared_prefix_tokens: r.counter(
                "sconce:shared_prefix_tokens_total",
                "Tokens of context that decodes had in common with another, and did not read again.",
            ),
            trace_spans_exported: r.counter(
                "sconce:trace_spans_exported_total",
                "Spans that were sent to the collector of traces, and taken.",
            ),
            trace_spans_dropped,
            http_requests: r.counter_vec(
                "http_requests_total",
                "HTTP requests by handler, method and status.",
                &HTTP_METHOD_LABELS,
            ),
            http_duration: r.histogram_vec(
                "http_request_duration_seconds",
                "Time until a response's head was ready.",
                &["handler", "method"],
                LATENCY_BUCKETS,
            ),
            registry,
        }
    }

    /// A tenant's metrics.
    pub(crate) fn of_tenant(&self, name: &str) -> TenantMetrics {
        self.tenants.of(name)
    }

    /// What a tenant has used, and how long its requests waited for their first tokens; a name
    /// that the engine does not know gets metrics of its own.
    #[must_use]
    pub fn tenant_usage(&self, name: &str) -> TenantUsage {
        self.tenants.of(name).usage()
    }

    /// Takes over how the ledger fares.
    pub(crate) fn note_ledger(&self, state: SinkState) {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.ledger_failing.set(i64::from(state.failing));
        self.ledger_lost.set(count(state.lost));
        self.ledger_replaced.set(count(state.replaced));
    }

    /// Tells of a form of an operation that is not used.
    pub fn unused_form(&self, operation: &str, form: &str) {
        self.unused_forms.with_label_values(&[operation, form]).set(1);
    }

    /// All metrics in Prometheus' text format, those of single tenants only if
    /// `with_tenants`.
    #[must_use]
    pub fn render(&self, with_tenants: bool) -> String {
        let mut families = self.registry.gather();
        if with_tenants {
            families.extend(self.tenant_registry.gather());
        }
        Self::encode(&families)
    }

    /// The metrics of one tenant in Prometheus' text format.
    #[must_use]
    pub fn render_tenant(&self, name: &str) -> String {
        let is_its_own = |metric: &Metric| {
            let mut labels = metric.get_label().iter();
            labels.any(|label| label.name() == "tenant" && label.value() == name)
        };
        let mut families = self.tenant_registry.gather();
        for family in &mut families {
            let metrics = family.take_metric().into_iter().filter(is_its_own).collect();
            family.set_metric(metrics);
        }
        // The encoder refuses a family without metrics.
        families.retain(|family| !family.get_metric().is_empty());
        Self::encode(&families)
    }

    fn encode(families: &[MetricFamily]) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(families, &mut text)
            .expect("the text encoder cannot fail on a vector");
        String::from_utf8(text).expect("the text encoder writes UTF-8")
    }
}

pub(crate) struct Registrar<'a> {
    registry: &'a Registry,
    model_name: &'a str,
}

impl Registrar<'_> {
    pub(crate) fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", self.model_name).const_label("engine", "0")
    }

    pub(crate) fn register<C: Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<C>,
    ) -> C {
        let metric = metric.expect("metric names, labels and buckets are literals of this file");
        self.registry
            .register(Box::new(metric.clone()))
            .expect("each metric of this file is registered once");
        metric
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    pub(crate) fn histogram_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }

    /// Gateways read the pool's size from this gauge's labels.
    fn info_gauge(&self, num_blocks: usize) {
        let opts = self
            .opts("vllm:cache_config_info", "The KV cache's configuration.")
            .const_label("block_size", sconce_types::BLOCK_SIZE.to_string())
            .const_label("num_gpu_blocks", num_blocks.to_string());
        self.register(IntGauge::with_opts(opts)).set(1);
    }
}
