//! The buffers that activations live in, allocated once and lent out during a pass.

use sconce_kernels::{Backend, KernelError, Routing};

/// A buffer that is lent to who holds this. It is no copy of a number: what holds it is
/// alone with the buffer, and giving it back ([`Workspace::free`]) ends that. One that is
/// dropped stays lent until the next pass begins.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the rest of the pass"]
pub struct Buf {
    index: usize,
    pass: u64,
}

/// Which buffer was lent: what is recorded once is found there again.
#[derive(Clone, Copy, Debug)]
pub struct BufPlace(usize);

/// Activations and logits of a step.
///
/// A pass takes buffers by their columns, the lowest free one first, so each pass of a
/// model takes the same ones. The first pass allocates what it takes; then
/// [`Workspace::freeze`] ends that, since a step allocates nothing.
pub struct Workspace<B: Backend> {
    buffers: Vec<Entry<B::Buffer>>,
    /// Which experts rows go to.
    routes: Option<(Routing, B::Routes)>,
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
    /// `[max_num_tokens, num_experts]`, f32.
    Scores(usize),
}

impl<B: Backend> Workspace<B> {
    /// For steps of at most `max_num_tokens` rows, of which at most `max_logit_rows` at a
    /// time get logits.
    #[must_use]
    pub fn new(max_num_tokens: usize, max_logit_rows: usize) -> Self {
        Self {
            buffers: Vec::new(),
            routes: None,
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
            Kind::Activations(cols) | Kind::Logits(cols) | Kind::Scores(cols) => cols,
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

    /// What an operation reads, what it uses meanwhile, and what it writes.
    pub(crate) fn triple(
        &mut self,
        x: &Buf,
        scratch: &mut Buf,
        out: &mut Buf,
    ) -> (&B::Buffer, &mut B::Buffer, &mut B::Buffer) {
        [x, &*scratch, &*out].into_iter().for_each(|buf| self.check(buf));
        let all = self.buffers.get_disjoint_mut([x.index, scratch.index, out.index]);
        let [x, scratch, out] = all.expect("three handles are of three buffers");
        (&x.buffer, &mut scratch.buffer, &mut out.buffer)
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// If it was lent in an earlier pass.
    pub fn free(&mut self, buf: Buf) {
        self.check(&buf);
        self.release(buf.index);
    }

    /// Which buffer this is.
    ///
    /// # Panics
    /// If it was lent in an earlier pass.
    #[must_use]
    pub fn place(&self, buf: &Buf) -> BufPlace {
        self.check(buf);
        BufPlace(buf.index)
    }

    /// Lends the buffer of an earlier pass, as that pass has left it where it was computed
    /// again.
    ///
    /// # Panics
    /// If it is lent.
    pub fn take_at(&mut self, place: BufPlace) -> Buf {
        let entry = &mut self.buffers[place.0];
        assert!(entry.is_free, "a buffer is lent to one at a time");
        entry.is_free = false;
        Buf { index: place.0, pass: self.pass }
    }

    /// Starts a pass: every buffer is free.
    pub fn begin(&mut self) {
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

    /// Scores of experts `[max_num_tokens, num_experts]`, of what values they happen to hold.
    pub(crate) fn take_scores(&mut self, ops: &B, num_experts: usize) -> Result<Buf, KernelError> {
        self.lend(ops, Kind::Scores(num_experts))
    }

    /// Routes of `max_num_tokens` rows: for one layer at a time, which gives them back. All
    /// layers of a model choose in the same way.
    pub(crate) fn take_routes(
        &mut self,
        ops: &B,
        routing: Routing,
    ) -> Result<B::Routes, KernelError> {
        match self.routes.take() {
            Some((known, routes)) if known == routing => Ok(routes),
            _ => ops.routes(self.max_num_tokens, routing),
        }
    }

    /// Gives routes back.
    pub(crate) fn free_routes(&mut self, routing: Routing, routes: B::Routes) {
        self.routes = Some((routing, routes));
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
                    Kind::Scores(cols) => ops.logits_buffer(self.max_num_tokens, cols)?,
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

#[cfg(test)]
mod tests {
    use sconce_kernels::{
        Device as _,
        cpu::{Cpu, CpuBuffer, CpuConfig},
    };

    use super::{Buf, Workspace};

    fn cpu() -> Cpu {
        Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() })
    }

    fn poison(buffer: &mut CpuBuffer) {
        buffer.rows_mut(buffer.capacity()).fill(f32::NAN);
    }

    /// The rows that an operation would write.
    fn write(workspace: &mut Workspace<Cpu>, buf: &mut Buf, value: f32) {
        workspace.get_mut(buf).rows_mut(2).fill(value);
    }

    #[test]
    fn the_lowest_free_buffer_of_its_columns_is_lent() {
        let cpu = cpu();
        let mut workspace = Workspace::new(3, 2);
        workspace.begin();
        let take = |workspace: &mut Workspace<_>, cols| workspace.take(&cpu, cols).expect("room");
        let [a, b, c] = [16, 32, 16].map(|cols| take(&mut workspace, cols));
        assert_eq!([a.index, b.index, c.index], [0, 1, 2]);
        // Of as many columns, but of as many rows as get logits.
        let logits = workspace.take_logits(&cpu, 16).expect("room");
        assert_eq!(logits.index, 3);
        assert_eq!(workspace.columns(), [16, 32, 16, 16]);
        assert_eq!([&c, &logits].map(|buf| workspace.get(buf).capacity()), [3, 2]);
        workspace.free(c);
        workspace.free(a);
        let like = workspace.take_like(&cpu, &b).expect("room");
        assert_eq!(like.index, 4, "the other of 32 columns is lent");
        assert_eq!(take(&mut workspace, 16).index, 0);
        // What was never given back is free in the next pass.
        workspace.begin();
        workspace.freeze();
        let again = [16, 32, 16, 32].map(|cols| take(&mut workspace, cols).index);
        assert_eq!(again, [0, 1, 2, 4]);
    }

    #[test]
    fn a_buffer_of_an_earlier_pass_is_lent_again_once() {
        let cpu = cpu();
        let mut workspace = Workspace::new(3, 2);
        workspace.begin();
        let [first, mut second] = [(); 2].map(|()| workspace.take(&cpu, 16).expect("room"));
        write(&mut workspace, &mut second, 7.0);
        let place = workspace.place(&second);
        drop(first);
        workspace.begin();
        let again = workspace.take_at(place);
        assert_eq!((again.index, workspace.get(&again).rows(1)[0]), (1, 7.0));
        assert_eq!(workspace.take(&cpu, 16).expect("room").index, 0);
        assert_eq!(workspace.take(&cpu, 16).expect("room").index, 2, "it is lent");
    }

    #[test]
    #[should_panic(expected = "lent to one at a time")]
    fn a_buffer_is_not_lent_again_while_it_is() {
        let cpu = cpu();
        let mut workspace = Workspace::new(3, 2);
        workspace.begin();
        let buf = workspace.take(&cpu, 16).expect("room");
        let place = workspace.place(&buf);
        let _other = workspace.take_at(place);
    }

    #[test]
    #[should_panic(expected = "beyond what the first one took")]
    fn a_frozen_workspace_does_not_grow() {
        let cpu = cpu();
        let mut workspace = Workspace::new(3, 2);
        workspace.begin();
        let _lent = workspace.take(&cpu, 16).expect("room");
        workspace.freeze();
        let _beyond = workspace.take(&cpu, 16);
    }

    #[test]
    #[should_panic(expected = "lent in an earlier pass")]
    fn a_handle_ends_with_its_pass() {
        let cpu = cpu();
        let mut workspace = Workspace::new(3, 2);
        workspace.begin();
        let buf = workspace.take(&cpu, 16).expect("room");
        workspace.begin();
        let _stale = workspace.get(&buf);
    }

    /// What a layer would do that gives back what it goes on to read, if it could: no safe
    /// code outside this file can make a second handle of a buffer.
    #[test]
    fn poison_shows_what_is_read_after_it_was_given_back() {
        let mut cpu = cpu();
        let mut sums = [false, true].map(|is_poisoned| {
            let mut workspace = Workspace::new(2, 2);
            if is_poisoned {
                workspace.poison_freed(poison);
            }
            workspace.begin();
            let mut x = workspace.take(&cpu, 16).expect("room");
            write(&mut workspace, &mut x, 1.0);
            let forged = Buf { index: x.index, pass: x.pass };
            workspace.free(x);
            cpu.read(workspace.get(&forged), 1).expect("it is there").iter().sum::<f32>()
        });
        assert_eq!(sums[0], 16.0);
        assert!(sums[1].is_nan());
        // A pass that begins gives back whatever is still lent.
        let mut workspace = Workspace::new(2, 2);
        workspace.poison_freed(poison);
        workspace.begin();
        let mut lost = workspace.take(&cpu, 16).expect("room");
        write(&mut workspace, &mut lost, 1.0);
        workspace.begin();
        let found = workspace.take(&cpu, 16).expect("room");
        sums[0] = cpu.read(workspace.get(&found), 1).expect("it is there").iter().sum();
        assert!(sums[0].is_nan());
    }

    #[test]
    #[should_panic(expected = "two handles are of two buffers")]
    fn an_operation_never_writes_what_it_reads() {
        let cpu = cpu();
        let mut workspace = Workspace::new(2, 2);
        workspace.begin();
        let mut x = workspace.take(&cpu, 16).expect("room");
        let forged = Buf { index: x.index, pass: x.pass };
        let _both = workspace.pair(&forged, &mut x);
    }
}
