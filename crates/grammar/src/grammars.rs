//! From sources to grammars: compiled once, within limits, off the engine's thread.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use llguidance::{
    Matcher, ParserFactory,
    api::ParserLimits,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, SimpleVob},
};
use sconce_text::TextModel;
use sconce_types::{TenantId, TokenId};

use crate::{Constraint, GrammarError, Source, mask_threads::MaskThreads, vocabulary::Vocabulary};

/// What the compiler calls recursively is bounded, but by more than a thread's usual stack.
const STACK_BYTES: usize = 64 << 20;
/// Compilations at once, with those that are beyond their time: of a tenant, and in all.
const MAX_COMPILING_BY_TENANT: usize = 2;
const MAX_COMPILING: usize = 8;

/// What grammars may take.
#[derive(Clone, Debug)]
pub struct GrammarConfig {
    /// Bytes of a source.
    pub max_source_bytes: usize,
    /// The time that a source may take to compile.
    pub compile_time: Duration,
    /// Compiled grammars that are kept.
    pub max_cached: usize,
    /// Bytes of the sources of those.
    pub max_cached_bytes: usize,
    /// Threads that compute masks.
    pub mask_threads: usize,
    /// Ways in which the parser may understand an answer at one place: a grammar with choices
    /// or optional parts has some, an ambiguous one ever more.
    pub max_parser_items: usize,
}

impl Default for GrammarConfig {
    fn default() -> Self {
        const MAX_MASK_THREADS: usize = 4;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_source_bytes: 64 << 10,
            compile_time: Duration::from_secs(1),
            max_cached: 256,
            max_cached_bytes: 4 << 20,
            mask_threads: (processors / 4).clamp(1, MAX_MASK_THREADS),
            max_parser_items: 1000,
        }
    }
}

/// What bounds a grammar's work, by the compiler's own measure about 20 ms for its lexer, 17 ms
/// for a mask, and 40 MB of lexer states for an answer.
fn limits(config: &GrammarConfig) -> ParserLimits {
    ParserLimits {
        max_items_in_row: config.max_parser_items,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// A model's grammars. Nothing is built before the first is wanted.
pub struct Grammars {
    inner: Arc<Inner>,
}

struct Inner {
    text: Arc<TextModel>,
    vocab_size: usize,
    config: GrammarConfig,
    machine: OnceLock<Result<Machine, GrammarError>>,
    cache: Mutex<Cache>,
    /// Whose compilations have not ended.
    compiling: Mutex<Vec<TenantId>>,
}

/// What all grammars of a model share.
struct Machine {
    factory: ParserFactory,
    end_tokens: Arc<[TokenId]>,
    threads: Arc<MaskThreads>,
}

/// A compiled grammar; clones share it.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    /// Before the first token; never advanced.
    matcher: Mutex<Matcher>,
    first_mask: SimpleVob,
    end_tokens: Arc<[TokenId]>,
    threads: Arc<MaskThreads>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// A constraint for one answer. It copies the grammar's lexer, some tenths of a
    /// millisecond: what one answer makes of it, in memory or by its limits, is its own.
    #[must_use]
    pub fn constraint(&self) -> Constraint {
        let Compiled { matcher, first_mask, end_tokens, threads } = &*self.0;
        let matcher = matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let matcher = matcher.into_cancellable();
        Constraint::new(matcher, first_mask.clone(), Arc::clone(end_tokens), Arc::clone(threads))
    }

    /// Whether this is a clone of the other.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Compiled or refused sources, by tenant: whether another tenant uses a source shows in no
/// time. Of a source that is being compiled the cell is empty.
#[derive(Default)]
struct Cache {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    clock: u64,
}

type Key = (TenantId, Arc<str>);
type Cell = Arc<OnceLock<Result<Grammar, GrammarError>>>;

struct Entry {
    cell: Cell,
    used: u64,
}

impl Grammars {
    /// The grammars of a model with this tokenizer and a vocabulary of so many tokens.
    #[must_use]
    pub fn new(text: Arc<TextModel>, vocab_size: usize, config: GrammarConfig) -> Self {
        let inner = Inner {
            text,
            vocab_size,
            config,
            machine: OnceLock::new(),
            cache: Mutex::default(),
            compiling: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The grammar of a source, if it is kept from before. Does not block.
    ///
    /// # Errors
    /// The source is too long, or known to be wrong.
    pub fn kept(&self, tenant: TenantId, source: &Source) -> Result<Option<Grammar>, GrammarError> {
        let key = (tenant, self.key(source)?);
        self.inner.cache().kept(&key).transpose()
    }

    fn key(&self, source: &Source) -> Result<Arc<str>, GrammarError> {
        let (key, limit) = (source.key(), self.inner.config.max_source_bytes);
        if key.len() > limit {
            return Err(GrammarError::TooLong { bytes: key.len(), limit });
        }
        Ok(key.into())
    }

    /// The grammar of a source, compiled or kept from before. It blocks its thread, for the
    /// time that a source may take at most, and once for the model's vocabulary. Callers that
    /// want the same source at once wait for one compilation.
    ///
    /// # Errors
    /// What is wrong with the source; see [`GrammarError`].
    pub fn compile(&self, tenant: TenantId, source: &Source) -> Result<Grammar, GrammarError> {
        let key = self.key(source)?;
        // Outside of the time that a source may take.
        self.inner.machine()?;
        let key = (tenant, key);
        let cell = self.inner.cache().cell(&key, &self.inner.config);
        let compiled =
            cell.get_or_init(|| Inner::compile_in_time(&self.inner, tenant, source)).clone();
        // It may do better when less else is to be done.
        if let Err(GrammarError::Busy | GrammarError::TooSlow { .. } | GrammarError::Bug) = compiled
        {
            self.inner.cache().forget(&key);
        }
        compiled
    }
}

impl Inner {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Result<&Machine, GrammarError> {
        let build = || {
            let began = Instant::now();
            let (env, end_tokens) = Vocabulary::new(&self.text, self.vocab_size)?.into_env();
            let slices = SlicedBiasComputer::json_slices();
            let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
            let mut factory = factory.map_err(|error| {
                tracing::error!("no grammars with this vocabulary: {error}");
                GrammarError::Bug
            })?;
            factory.quiet();
            *factory.limits_mut() = limits(&self.config);
            let threads = MaskThreads::new(self.config.mask_threads.max(1)).map_err(|error| {
                tracing::error!("no threads for masks: {error}");
                GrammarError::Bug
            })?;
            tracing::debug!("the vocabulary for grammars took {:?}", began.elapsed());
            Ok(Machine { factory, end_tokens, threads: Arc::new(threads) })
        };
        self.machine.get_or_init(build).as_ref().map_err(Clone::clone)
    }

    /// Compiles on a thread of its own, which has stack enough and can be left behind.
    fn compile_in_time(
        this: &Arc<Self>,
        tenant: TenantId,
        source: &Source,
    ) -> Result<Grammar, GrammarError> {
        let limit = this.config.compile_time;
        let running = Running::begin(this, tenant).ok_or(GrammarError::Busy)?;
        let (reply, result) = mpsc::sync_channel(1);
        let source = source.clone();
        let compile = move || {
            let compiled = catch_unwind(AssertUnwindSafe(|| running.inner.compile(&source)));
            drop(running);
            // Beyond its time nothing waits for it.
            let _ = reply.send(compiled.unwrap_or(Err(GrammarError::Bug)));
        };
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(compile) {
            tracing::error!("no thread to compile a grammar: {error}");
            return Err(GrammarError::Busy);
        }
        match result.recv_timeout(limit) {
            Ok(compiled) => compiled,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(GrammarError::TooSlow { limit }),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(GrammarError::Bug),
        }
    }

    fn compile(&self, source: &Source) -> Result<Grammar, GrammarError> {
        let Machine { factory, end_tokens, threads } = self.machine()?;
        let refused = |error| GrammarError::Refused(GrammarError::of_compiler(&error));
        let parser = factory.create_parser(source.grammar()?).map_err(refused)?;
        let mut matcher = Matcher::new(Ok(parser));
        // Some grammars fail here only, such as a schema that is a reference to itself.
        let first_mask = matcher.compute_mask_or_eos().map_err(refused)?;
        Ok(Grammar(Arc::new(Compiled {
            matcher: Mutex::new(matcher),
            first_mask,
            end_tokens: Arc::clone(end_tokens),
            threads: Arc::clone(threads),
        })))
    }
}

/// A compilation that has not ended.
struct Running {
    inner: Arc<Inner>,
    tenant: TenantId,
}

impl Running {
    /// `None` where there are enough.
    fn begin(inner: &Arc<Inner>, tenant: TenantId) -> Option<Self> {
        let mut running = inner.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = running.iter().filter(|&&other| other == tenant).count();
        if of_tenant >= MAX_COMPILING_BY_TENANT || running.len() >= MAX_COMPILING {
            return None;
        }
        running.push(tenant);
        Some(Self { inner: Arc::clone(inner), tenant })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.inner.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = running.iter().position(|&tenant| tenant == self.tenant) {
            running.swap_remove(at);
        }
    }
}

/// What an entry counts beside its source, where tenants' parts are compared.
const ENTRY_BYTES: usize = 1024;

impl Cache {
    /// The cell of a source; a new one takes the room of those that were not used for longest.
    fn cell(&mut self, key: &Key, config: &GrammarConfig) -> Cell {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.used = self.clock;
            return Arc::clone(&entry.cell);
        }
        let cell = Cell::default();
        self.bytes += key.1.len();
        let entry = Entry { cell: Arc::clone(&cell), used: self.clock };
        self.entries.insert(key.clone(), entry);
        while self.entries.len() > config.max_cached.max(1) || self.bytes > config.max_cached_bytes
        {
            // A tenant makes room for its own sources before another does.
            let mut held: HashMap<TenantId, usize> = HashMap::new();
            for (tenant, source) in self.entries.keys() {
                *held.entry(*tenant).or_default() += ENTRY_BYTES + source.len();
            }
            let most = held.values().copied().max();
            let theirs =
                self.entries.iter().filter(|((tenant, _), _)| held.get(tenant).copied() == most);
            let oldest = theirs.min_by_key(|(_, entry)| entry.used);
            let Some((oldest, _)) = oldest else { break };
            let oldest = oldest.clone();
            self.forget(&oldest);
        }
        cell
    }

    fn kept(&mut self, key: &Key) -> Option<Result<Grammar, GrammarError>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        entry.cell.get().cloned()
    }

    fn forget(&mut self, key: &Key) {
        if self.entries.remove(key).is_some() {
            self.bytes -= key.1.len();
        }
    }
}
