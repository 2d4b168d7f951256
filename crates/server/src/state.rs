//! What every handler shares.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{
    RngExt as _, SeedableRng as _,
    distr::{Distribution, StandardUniform},
    rngs::StdRng,
};
use sconce_engine::EngineHandle;
use sconce_tenants::ApiKeys;
use sconce_text::{ReasoningFormat, TextModel, ToolFormat};
use sconce_types::EmbeddingInfo;

use crate::{
    AllowedOrigins, Batches, TenantDirectory, Traces,
    generation::generator::Generator,
    intake::{BodyConfig, Intake},
    live::Live,
    openai::responses::ResponseStore,
    openapi,
    origins::Origins,
};

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The names that requests may use for the model; the first is its own.
    pub served_model_names: Vec<String>,
    /// What the model makes of texts, if it makes embeddings and generates nothing.
    pub embedding: Option<EmbeddingInfo>,
    /// Keys of which a request needs one; none needed if empty. Only for a server of one
    /// tenant: where there are more, their own keys are asked for.
    pub api_keys: ApiKeys,
    /// Who the tenants are.
    pub tenants: Arc<TenantDirectory>,
    /// Bytes of a request's body at most.
    pub max_body_bytes: usize,
    /// How bodies are received.
    pub bodies: BodyConfig,
    /// Bytes of the latest responses that are kept for `previous_response_id`, of all tenants.
    pub response_store_bytes: usize,
    /// Files and batches; there are none if not given.
    pub batches: Option<Arc<Batches>>,
    /// The form of the model's calls; found in its chat template if not given.
    pub tool_call_parser: Option<ToolFormat>,
    /// The form of its thoughts; found in its chat template if not given.
    pub reasoning_parser: Option<ReasoningFormat>,
    /// Seed of the sampling of requests that bring none; random if not given.
    pub seed: Option<u64>,
    /// A prefix of paths that a proxy leaves on, such as `/llm`.
    pub root_path: String,
    /// The name that the server was told to listen on, which requests may be sent to.
    pub host: String,
    /// Whose web pages may read answers.
    pub allowed_origins: AllowedOrigins,
    /// Whether each request has a line in the log.
    pub access_log: bool,
    /// Paths whose requests have none, such as `/health`.
    pub unlogged_paths: Vec<String>,
    /// Where spans of requests go; there are none if not given.
    pub traces: Option<Arc<Traces>>,
    /// A step longer than this makes `/health` fail.
    pub step_patience: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            served_model_names: Vec::new(),
            embedding: None,
            api_keys: ApiKeys::default(),
            tenants: Arc::new(TenantDirectory::sole()),
            max_body_bytes: 4 << 20,
            bodies: BodyConfig::default(),
            response_store_bytes: 64 << 20,
            batches: None,
            tool_call_parser: None,
            reasoning_parser: None,
            seed: None,
            root_path: String::new(),
            host: String::new(),
            allowed_origins: AllowedOrigins::default(),
            access_log: false,
            unlogged_paths: Vec::new(),
            traces: None,
            step_patience: Duration::from_secs(60),
        }
    }
}

/// Shared by all handlers.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) engine: EngineHandle,
    pub(crate) text: Arc<TextModel>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) live: Arc<Live>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) generator: Generator,
    pub(crate) responses: Arc<ResponseStore>,
    pub(crate) document: Arc<openapi::Text>,
    pub(crate) started: u64,
}

impl AppState {
    pub(crate) fn new(engine: EngineHandle, text: Arc<TextModel>, config: ServerConfig) -> Self {
        let limits = engine.limits();
        let intake = Intake::new(
            &config.bodies,
            limits.scheduler.max_num_seqs + limits.scheduler.max_queued,
        );
        let generator = Generator::with_seed(
            engine.clone(),
            Arc::clone(&text),
            config.tool_call_parser,
            config.reasoning_parser,
            config.seed,
        );
        Self {
            engine,
            generator,
            responses: Arc::new(ResponseStore::new(config.response_store_bytes)),
            document: Arc::default(),
            text,
            origins: Arc::new(Origins::new(&config.host, &config.allowed_origins)),
            config: Arc::new(config),
            intake: Arc::new(intake),
            live: Arc::new(Live::new()),
            started: unix_seconds(),
        }
    }

    /// The model's own name.
    pub(crate) fn model_name(&self) -> &str {
        self.config.served_model_names.first().map_or("", String::as_str)
    }

    /// Tokens of context: of a model that makes embeddings, of a text.
    pub(crate) fn max_model_len(&self) -> usize {
        let embedding = self.config.embedding.as_ref();
        let of_engine = self.engine.limits().scheduler.max_model_len;
        embedding.map_or(of_engine, |embedding| embedding.max_tokens)
    }

    /// The name that an answer says it is of: the one that the request used.
    pub(crate) fn answering_name(&self, asked: Option<String>) -> String {
        let asked = asked.filter(|name| !name.is_empty());
        asked.unwrap_or_else(|| self.model_name().to_owned())
    }

    /// An id that no other response of any server is likely to have, and that tells nothing
    /// of how many there were.
    pub(crate) fn next_id(&self, prefix: &str) -> String {
        format!("{prefix}{:032x}", self.generator.ids.next::<u128>())
    }
}

/// Numbers that follow from an origin and a counter.
pub(crate) struct IdSource {
    origin: u64,
    counter: AtomicU64,
}

impl IdSource {
    pub(crate) fn new(origin: u64) -> Self {
        Self { origin, counter: AtomicU64::new(0) }
    }

    pub(crate) fn next<T>(&self) -> T
    where
        StandardUniform: Distribution<T>,
    {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        StdRng::seed_from_u64(self.origin.wrapping_add(count)).random()
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
