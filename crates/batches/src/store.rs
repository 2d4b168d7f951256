//! The folder, and what is known of what lies in it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    Answer, Batch, Counts, Input, Line, Status, StoredFile, Upload,
    disk::{StoreError, io_error, place, read_json, temporary, write_json},
    results::{self, Results},
};

/// What a tenant may keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one file.
    pub max_file_bytes: u64,
    /// Bytes of all its files.
    pub max_bytes: u64,
    /// Files, and batches.
    pub max_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_file_bytes: 200 << 20, max_bytes: 2 << 30, max_entries: 2000 }
    }
}

/// A part of a list, the newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The entries.
    pub data: Vec<T>,
    /// Whether older ones follow.
    pub has_more: bool,
}

/// Files and batches of all tenants, in a folder that no other process uses.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    tenants: Mutex<BTreeMap<String, Kept>>,
}

/// What a tenant has.
#[derive(Debug, Default)]
struct Kept {
    files: BTreeMap<String, StoredFile>,
    batches: BTreeMap<String, Batch>,
}

impl Kept {
    fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

impl Store {
    /// Takes a folder into use, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be read or written, or a state in it is damaged.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(io_error(root))?;
        let mut tenants = BTreeMap::new();
        for folder in list(root)? {
            let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            let Some(tenant) = tenant_of(name) else { continue };
            let mut kept = Kept::default();
            for path in list(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with(".half-") {
                    // Of a process that was killed.
                    let _ = fs::remove_file(&path);
                } else if let Some(id) = name.strip_suffix(".file.json") {
                    kept.files.insert(id.to_owned(), read_json(&path)?);
                } else if let Some(id) = name.strip_suffix(".batch.json") {
                    kept.batches.insert(id.to_owned(), read_json(&path)?);
                }
            }
            tenants.insert(tenant, kept);
        }
        Ok(Self { root: root.to_owned(), limits, tenants: Mutex::new(tenants) })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // Entries are put in whole, after what they stand for is on the disk.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, tenant: &str, id: &str, kind: &str) -> PathBuf {
        self.root.join(folder_of(tenant)).join(format!("{id}.{kind}"))
    }

    /// A file to be filled.
    ///
    /// # Errors
    /// The tenant has as many files as it may, or the disk fails.
    pub fn upload(&self, tenant: &str) -> Result<Upload, StoreError> {
        let files = self.kept().get(tenant).map_or(0, |kept| kept.files.len());
        self.check_entries("files", files)?;
        let folder = self.root.join(folder_of(tenant));
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        Ok(Upload { file: temporary(&folder)?, folder, bytes: 0 })
    }

    /// Bytes that an upload may still grow by.
    #[must_use]
    pub fn room(&self, tenant: &str, upload: &Upload) -> u64 {
        let used = self.kept().get(tenant).map_or(0, Kept::bytes);
        let Limits { max_file_bytes, max_bytes, .. } = self.limits;
        max_file_bytes.min(max_bytes.saturating_sub(used)).saturating_sub(upload.bytes)
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn check_entries(&self, what: &'static str, count: usize) -> Result<(), StoreError> {
        if count < self.limits.max_entries {
            return Ok(());
        }
        Err(StoreError::Full { what, most: self.limits.max_entries as u64 })
    }

    /// Keeps what was uploaded, under a new id.
    ///
    /// # Errors
    /// The disk fails.
    pub fn keep(
        &self,
        tenant: &str,
        mut upload: Upload,
        id: String,
        (filename, purpose): (String, &str),
        now: u64,
    ) -> Result<StoredFile, StoreError> {
        upload.flush().map_err(io_error(&upload.folder))?;
        let file = StoredFile::new(id, upload.bytes, now, filename, purpose);
        place(upload.file, &self.path(tenant, &file.id, "jsonl"))?;
        self.add_file(tenant, &file)?;
        Ok(file)
    }

    fn add_file(&self, tenant: &str, file: &StoredFile) -> Result<(), StoreError> {
        write_json(&self.path(tenant, &file.id, "file.json"), file)?;
        let mut tenants = self.kept();
        tenants.entry(tenant.to_owned()).or_default().files.insert(file.id.clone(), file.clone());
        Ok(())
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, tenant: &str, id: &str) -> Result<StoredFile, StoreError> {
        let file = self.kept().get(tenant).and_then(|kept| kept.files.get(id).cloned());
        file.ok_or_else(|| StoreError::NotFound { what: "file", id: id.to_owned() })
    }

    /// Where a file's content lies.
    ///
    /// # Errors
    /// There is no such file.
    pub fn content(&self, tenant: &str, id: &str) -> Result<PathBuf, StoreError> {
        let file = self.file(tenant, id)?;
        Ok(self.path(tenant, &file.id, "jsonl"))
    }

    /// A tenant's files, of one purpose if that is given; after one of them, if that is given.
    #[must_use]
    pub fn files(
        &self,
        tenant: &str,
        purpose: Option<&str>,
        (after, limit): (Option<&str>, usize),
    ) -> Page<StoredFile> {
        let tenants = self.kept();
        let files = tenants.get(tenant).into_iter().flat_map(|kept| kept.files.values());
        let files = files.filter(|file| purpose.is_none_or(|purpose| purpose == file.purpose));
        page(files, |file| (file.created_at, &file.id), after, limit)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// There is none, or a batch needs it that has not ended.
    pub fn delete(&self, tenant: &str, id: &str) -> Result<(), StoreError> {
        let mut tenants = self.kept();
        let not_found = || StoreError::NotFound { what: "file", id: id.to_owned() };
        let kept = tenants.get_mut(tenant).ok_or_else(not_found)?;
        if !kept.files.contains_key(id) {
            return Err(not_found());
        }
        let needs = |batch: &&Batch| batch.input_file_id == id && !batch.status.is_final();
        if let Some(batch) = kept.batches.values().find(needs) {
            return Err(StoreError::InUse { id: id.to_owned(), batch: batch.id.clone() });
        }
        for kind in ["file.json", "jsonl"] {
            let path = self.path(tenant, id, kind);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(&path)(error));
                }
                _ => {}
            }
        }
        kept.files.remove(id);
        Ok(())
    }

    /// Keeps a new batch.
    ///
    /// # Errors
    /// Its input is no file of the tenant, the tenant has as many batches as it may, or the disk
    /// fails.
    pub fn add(&self, tenant: &str, batch: &Batch) -> Result<(), StoreError> {
        // Under one lock, so that its input is not removed meanwhile.
        let mut tenants = self.kept();
        let kept = tenants.get_mut(tenant);
        let kept = kept.filter(|kept| kept.files.contains_key(&batch.input_file_id));
        let kept = kept.ok_or_else(|| StoreError::NotFound {
            what: "file",
            id: batch.input_file_id.clone(),
        })?;
        self.check_entries("batches", kept.batches.len())?;
        write_json(&self.path(tenant, &batch.id, "batch.json"), batch)?;
        kept.batches.insert(batch.id.clone(), batch.clone());
        Ok(())
    }

    /// A batch as it is now.
    ///
    /// # Errors
    /// There is none.
    pub fn batch(&self, tenant: &str, id: &str) -> Result<Batch, StoreError> {
        let batch = self.kept().get(tenant).and_then(|kept| kept.batches.get(id).cloned());
        batch.ok_or_else(|| StoreError::NotFound { what: "batch", id: id.to_owned() })
    }

    /// A tenant's batches; after one of them, if that is given.
    #[must_use]
    pub fn batches(&self, tenant: &str, (after, limit): (Option<&str>, usize)) -> Page<Batch> {
        let tenants = self.kept();
        let batches = tenants.get(tenant).into_iter().flat_map(|kept| kept.batches.values());
        page(batches, |batch| (batch.created_at, &batch.id), after, limit)
    }

    /// The batches that have not ended, as `(tenant, id)`, the oldest first.
    #[must_use]
    pub fn unfinished(&self) -> Vec<(String, String)> {
        let tenants = self.kept();
        let mut found: Vec<_> = tenants
            .iter()
            .flat_map(|(tenant, kept)| kept.batches.values().map(move |batch| (tenant, batch)))
            .filter(|(_, batch)| !batch.status.is_final())
            .map(|(tenant, batch)| (batch.created_at, tenant.clone(), batch.id.clone()))
            .collect();
        found.sort();
        found.into_iter().map(|(_, tenant, id)| (tenant, id)).collect()
    }

    /// Changes a batch's state, on the disk before it is seen.
    ///
    /// # Errors
    /// There is no such batch, or the disk fails: then it is as it was.
    pub fn change<T>(
        &self,
        tenant: &str,
        id: &str,
        change: impl FnOnce(&mut Batch) -> T,
    ) -> Result<(Batch, T), StoreError> {
        let mut tenants = self.kept();
        let batch = tenants.get_mut(tenant).and_then(|kept| kept.batches.get_mut(id));
        let batch =
            batch.ok_or_else(|| StoreError::NotFound { what: "batch", id: id.to_owned() })?;
        let mut changed = batch.clone();
        let result = change(&mut changed);
        if changed != *batch {
            write_json(&self.path(tenant, id, "batch.json"), &changed)?;
            *batch = changed;
        }
        Ok((batch.clone(), result))
    }

    /// Begins a batch, or goes on with it: what has an answer is not run again. `None` if its
    /// input is wrong, which the batch then says.
    ///
    /// # Errors
    /// There is no such batch, or the disk fails.
    pub fn begin(
        &self,
        tenant: &str,
        id: &str,
        max_line_bytes: usize,
        now: u64,
    ) -> Result<Option<Run>, StoreError> {
        let batch = self.batch(tenant, id)?;
        if batch.status == Status::Cancelling && batch.in_progress_at.is_none() {
            self.change(tenant, id, |batch| batch.end(Counts::default(), [0, 0], now))?;
            return Ok(None);
        }
        let content = self.path(tenant, &batch.input_file_id, "jsonl");
        let input = match Input::read(&content, &batch.endpoint, max_line_bytes)? {
            Ok(input) => input,
            Err(errors) if batch.status == Status::Validating => {
                self.change(tenant, id, |batch| batch.fail(errors, now))?;
                return Ok(None);
            }
            Err(_) => {
                let changed = io::Error::new(io::ErrorKind::InvalidData, "the input has changed");
                return Err(io_error(&content)(changed));
            }
        };
        let path = self.path(tenant, id, "answers.jsonl");
        let results = Results::open(&path)?;
        let total = input.len();
        let (batch, ()) = self.change(tenant, id, |batch| {
            if batch.status == Status::Validating {
                batch.begin(total, now);
            }
            batch.request_counts = Counts { total, ..results.counts };
        })?;
        let pending =
            if batch.status == Status::InProgress { (0..total).collect() } else { VecDeque::new() };
        let (tenant, id) = (tenant.to_owned(), id.to_owned());
        Ok(Some(Run { tenant, id, input, results, path, pending }))
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// The disk fails.
    pub fn answer(&self, run: &mut Run, answer: &Answer) -> Result<(), StoreError> {
        run.results.append(&run.path, answer)?;
        // The counts follow from the answers: they need not be written each time.
        let mut tenants = self.kept();
        let batch = tenants.get_mut(&run.tenant).and_then(|kept| kept.batches.get_mut(&run.id));
        if let Some(batch) = batch {
            let Counts { completed, failed, .. } = run.results.counts;
            batch.request_counts = Counts { completed, failed, ..batch.request_counts };
        }
        Ok(())
    }

    /// Makes files of the answers and ends the batch. A request without an answer has expired,
    /// unless the batch was given up.
    ///
    /// # Errors
    /// The disk fails: it may be tried again, also by another process.
    pub fn finish(&self, mut run: Run, now: u64) -> Result<Batch, StoreError> {
        let (tenant, id) = (run.tenant.as_str(), run.id.as_str());
        let files = ["output", "errors"].map(|kind| format!("file-{id}-{kind}"));
        let [output, errors] = files.clone();
        let (batch, ()) = self.change(tenant, id, |batch| {
            if batch.status != Status::Finalizing {
                batch.finalize(output, errors, now);
            }
        })?;
        let mut expired = Vec::new();
        for index in 0..run.input.len() {
            let line = run.input.line(index).map_err(io_error(&run.path))?;
            if !run.results.answered.contains(&line.custom_id) {
                expired.push(line.custom_id);
            }
        }
        if batch.status == Status::Cancelling {
            expired.clear();
        }
        let paths = files.each_ref().map(|file| self.path(tenant, file, "jsonl"));
        let lens = results::deal(&run.path, [&paths[0], &paths[1]], expired.into_iter())?;
        for ((file, len), kind) in files.into_iter().zip(lens).zip(["output", "errors"]) {
            if len > 0 {
                let name = format!("{id}_{kind}.jsonl");
                self.add_file(tenant, &StoredFile::new(file, len, now, name, "batch_output"))?;
            }
        }
        let counts = Counts { total: run.input.len(), ..run.results.counts };
        let (batch, ()) = self.change(tenant, id, |batch| batch.end(counts, lens, now))?;
        // A batch that has ended needs it no more.
        let _ = fs::remove_file(&run.path);
        Ok(batch)
    }
}

/// A batch that is being run.
#[derive(Debug)]
pub struct Run {
    /// Whose it is.
    pub tenant: String,
    /// The batch.
    pub id: String,
    input: Input,
    results: Results,
    path: PathBuf,
    /// Requests that were not looked at yet.
    pending: VecDeque<usize>,
}

impl Run {
    /// The next request without an answer.
    ///
    /// # Errors
    /// The disk fails.
    pub fn next_line(&mut self) -> Result<Option<Line>, StoreError> {
        while let Some(index) = self.pending.pop_front() {
            let line = self.input.line(index).map_err(io_error(&self.path))?;
            if !self.results.answered.contains(&line.custom_id) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Whether requests are left that were not looked at.
    #[must_use]
    pub fn has_next(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Begins no more requests.
    pub fn stop(&mut self) {
        self.pending.clear();
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    entries.map(|entry| Ok(entry.map_err(io_error(folder))?.path())).collect()
}

/// A tenant's name as a folder's: in hex, whatever it is.
fn folder_of(tenant: &str) -> String {
    let hex: String = tenant.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("tenant-{hex}")
}

fn tenant_of(folder: &str) -> Option<String> {
    let hex = folder.strip_prefix("tenant-")?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// The entries after one, the newest first.
fn page<'a, T: Clone + 'a>(
    entries: impl Iterator<Item = &'a T>,
    key: impl Fn(&T) -> (u64, &String),
    after: Option<&str>,
    limit: usize,
) -> Page<T> {
    let mut entries: Vec<&T> = entries.collect();
    entries.sort_by(|a, b| key(b).cmp(&key(a)));
    let first = match after {
        None => 0,
        // After one that is gone nothing is known to follow.
        Some(after) => {
            let at = entries.iter().position(|entry| key(entry).1 == after);
            at.map_or(entries.len(), |at| at + 1)
        }
    };
    let rest = &entries[first..];
    let data = rest.iter().take(limit).map(|&entry| entry.clone()).collect();
    Page { data, has_more: rest.len() > limit }
}
