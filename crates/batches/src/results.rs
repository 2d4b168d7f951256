//! The answers of a batch: a line each, appended as they come.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    batch::Counts,
    disk::{StoreError, io_error, place, temporary},
};

/// A request's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's own name.
    pub custom_id: String,
    /// An id of this answer.
    pub id: String,
    /// HTTP's.
    pub status: u16,
    /// As `X-Request-Id` has it.
    pub request_id: String,
    /// What was answered.
    pub body: Value,
}

impl Answer {
    fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "custom_id": self.custom_id,
            "response": {
                "status_code": self.status,
                "request_id": self.request_id,
                "body": self.body,
            },
            "error": null,
        })
    }
}

/// What is read of a line again.
#[derive(Deserialize)]
struct Written {
    custom_id: String,
    response: WrittenResponse,
}

#[derive(Deserialize)]
struct WrittenResponse {
    status_code: u16,
}

/// The answers of a batch so far.
#[derive(Debug)]
pub(crate) struct Results {
    file: File,
    pub(crate) answered: HashSet<String>,
    pub(crate) counts: Counts,
}

impl Results {
    /// Takes up what an earlier process has written; a line that was cut off is none.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let (mut answered, mut counts) = (HashSet::new(), Counts::default());
        let mut whole = 0;
        if let Ok(file) = File::open(path) {
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).map_err(io_error(path))? > 0 {
                let Some(text) = line.strip_suffix(b"\n") else { break };
                let Ok(written) = serde_json::from_slice::<Written>(text) else { break };
                count(&mut counts, written.response.status_code);
                answered.insert(written.custom_id);
                whole += line.len() as u64;
                line.clear();
            }
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        let file = options.open(path).map_err(io_error(path))?;
        file.set_len(whole).map_err(io_error(path))?;
        Ok(Self { file, answered, counts })
    }

    /// Appends an answer, which is kept from then on.
    pub(crate) fn append(&mut self, path: &Path, answer: &Answer) -> Result<(), StoreError> {
        let mut line = answer.to_json().to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(io_error(path))?;
        self.file.sync_data().map_err(io_error(path))?;
        count(&mut self.counts, answer.status);
        self.answered.insert(answer.custom_id.clone());
        Ok(())
    }
}

fn count(counts: &mut Counts, status: u16) {
    if status == 200 {
        counts.completed += 1;
    } else {
        counts.failed += 1;
    }
}

/// Deals the answers out to two files: those of status 200, and the others, with a line for
/// each request that has none. Gives the files' lengths.
pub(crate) fn deal(
    results: &Path,
    [output, errors]: [&Path; 2],
    expired: impl Iterator<Item = String>,
) -> Result<[u64; 2], StoreError> {
    let folder = output.parent().unwrap_or(Path::new("."));
    let (mut good, mut bad) = (temporary(folder)?, temporary(folder)?);
    let reader = BufReader::new(File::open(results).map_err(io_error(results))?);
    for line in reader.lines() {
        let mut line = line.map_err(io_error(results))?;
        let written: Written = serde_json::from_str(&line)
            .map_err(|source| StoreError::Damaged { path: results.to_owned(), source })?;
        line.push('\n');
        let to = if written.response.status_code == 200 { &mut good } else { &mut bad };
        to.write_all(line.as_bytes()).map_err(io_error(folder))?;
    }
    for custom_id in expired {
        let line = json!({
            "id": format!("expired-{custom_id}"),
            "custom_id": custom_id,
            "response": null,
            "error": {
                "code": "batch_expired",
                "message": "the batch's time was over before this request was run",
            },
        });
        bad.write_all(format!("{line}\n").as_bytes()).map_err(io_error(folder))?;
    }
    let mut lens = [0; 2];
    for ((file, path), len) in [(good, output), (bad, errors)].into_iter().zip(&mut lens) {
        *len = file.as_file().metadata().map_err(io_error(path))?.len();
        if *len > 0 {
            place(file, path)?;
        } else {
            // One of an attempt before.
            let _ = fs::remove_file(path);
        }
    }
    Ok(lens)
}
