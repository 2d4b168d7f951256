//! The buffers that activations live in, allocated once and lent out during a pass.

use sconce_kernels::{Backend, KernelError};

/// A buffer that is lent to who holds this. It is no copy of a number: what holds it is
/// alone with the buffer, and giving it back ([`Workspace::free`]) ends that. One that is
/// dropped stays lent until the next pass begins.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the rest of the pass"]
pub struct Buf {
    index: usize,
    pass: u64,
}

/// Activations and logits of a step.
///
/// A pass takes buffers by their columns, the lowest free one first, so each pass of a
/// model takes the same ones. The first pass allocates what it takes; then
/// [`Workspace::freeze`] ends that, since a step allocates nothing.
pub struct Workspace<B: Backend> {
    buffers: Vec<Entry<B::Buffer>>,
    max_num_tokens: usize,
    max_logit_rows: usize,
    /// Passes begun: a handle of an earlier one is refused.
    pass: u64,
    is_frozen: bool,
    poison: Option<fn(&mut B::Buffer)>,
}

struct Entry<T> {
    buffer: T,
    kind: Kind,
    is_free: bool,
}

/// What distinguishes buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `[max_num_tokens, cols]`, in the dtype that the backend computes in.
    Activations(usize),
    /// `[max_logit_rows, vocab_size]`, f32.
    Logits(usize),
}

impl<B: Backend> Workspace<B> {
    /// For steps of at most `max_num_tokens` rows, of which at most `max_logit_rows` at a
    /// time get logits.
    #[must_use]
    pub fn new(max_num_tokens: usize, max_logit_rows: usize) -> Self {
        Self {
            buffers: Vec::new(),
            max_num_tokens,
            max_logit_rows,
            pass: 0,
            is_frozen: false,
            poison: None,
        }
    }

    /// From here on a pass that takes more buffers than those before it is a defect.
    pub fn freeze(&mut self) {
        self.is_frozen = true;
    }

    /// Overwrites buffers as they are given back, so that a test sees a layer that counts
    /// on what it did not write.
    pub fn poison_freed(&mut self, poison: fn(&mut B::Buffer)) {
        self.poison = Some(poison);
    }

    /// The columns of all buffers, in the order in which they were first taken.
    #[must_use]
    pub fn columns(&self) -> Vec<usize> {
        let columns = |entry: &Entry<_>| match entry.kind {
            Kind::Activations(cols) | Kind::Logits(cols) => cols,
        };
        self.buffers.iter().map(columns).collect()
    }

    /// A lent buffer.
    ///
    /// # Panics
    /// If it was lent in an earlier pass.
    #[must_use]
    pub fn get(&self, buf: &Buf) -> &B::Buffer {
        self.check(buf);
        &self.buffers[buf.index].buffer
    }

    /// A lent buffer, to be written.
    ///
    /// # Panics
    /// If it was lent in an earlier pass.
    pub fn get_mut(&mut self, buf: &mut Buf) -> &mut B::Buffer {
        self.check(buf);
        &mut self.buffers[buf.index].buffer
    }

    /// What an operation reads and what it writes.
    pub(crate) fn pair(&mut self, x: &Buf, out: &mut Buf) -> (&B::Buffer, &mut B::Buffer) {
        self.check(x);
        self.check(out);
        let both = self.buffers.get_disjoint_mut([x.index, out.index]);
        let [x, out] = both.expect("two handles are of two buffers");
        (&x.buffer, &mut out.buffer)
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// If it was lent in an earlier pass.
    pub fn free(&mut self, buf: Buf) {
        self.check(&buf);
        self.release(buf.index);
    }

    /// Starts a pass: every buffer is free.
    pub(crate) fn begin(&mut self) {
        self.pass += 1;
        for index in 0..self.buffers.len() {
            if !self.buffers[index].is_free {
                self.release(index);
            }
        }
    }

    /// Activations `[max_num_tokens, cols]`, of what values they happen to hold.
    pub(crate) fn take(&mut self, ops: &B, cols: usize) -> Result<Buf, KernelError> {
        self.lend(ops, Kind::Activations(cols))
    }

    /// Another buffer of the same kind.
    pub(crate) fn take_like(&mut self, ops: &B, buf: &Buf) -> Result<Buf, KernelError> {
        self.check(buf);
        self.lend(ops, self.buffers[buf.index].kind)
    }

    /// Logits `[max_logit_rows, vocab_size]`, of what values they happen to hold.
    pub(crate) fn take_logits(&mut self, ops: &B, vocab_size: usize) -> Result<Buf, KernelError> {
        self.lend(ops, Kind::Logits(vocab_size))
    }

    fn lend(&mut self, ops: &B, kind: Kind) -> Result<Buf, KernelError> {
        let is_fit = |entry: &Entry<_>| entry.is_free && entry.kind == kind;
        let index = match self.buffers.iter().position(is_fit) {
            Some(index) => index,
            None => {
                assert!(!self.is_frozen, "a pass took {kind:?} beyond what the first one took");
                let buffer = match kind {
                    Kind::Activations(cols) => ops.buffer(self.max_num_tokens, cols)?,
                    Kind::Logits(cols) => ops.logits_buffer(self.max_logit_rows, cols)?,
                };
                self.buffers.push(Entry { buffer, kind, is_free: true });
                self.buffers.len() - 1
            }
        };
        self.buffers[index].is_free = false;
        Ok(Buf { index, pass: self.pass })
    }

    fn release(&mut self, index: usize) {
        let entry = &mut self.buffers[index];
        entry.is_free = true;
        if let Some(poison) = self.poison {
            poison(&mut entry.buffer);
        }
    }

    fn check(&self, buf: &Buf) {
        assert_eq!(buf.pass, self.pass, "a buffer that was lent in an earlier pass");
    }
}
