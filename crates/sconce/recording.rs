//! Recorded requests: a file of JSON lines, the first of which says what was run.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
};

use sconce_engine::{RecordSink, RecordedRequest};
use sconce_types::{End, SamplingParams, TokenId};
use serde::{Deserialize, Serialize};

/// The format's version.
const VERSION: u32 = 1;
/// Requests that may wait to be written; beyond that they are not recorded.
const QUEUE: usize = 4096;

/// What tokens follow from beside their request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingHead {
    /// The format's version.
    pub sconce_recording: u32,
    /// The model's name.
    pub model: String,
    /// Its dtype, quantization and KV-cache dtype, and the kind of device.
    pub computed_in: String,
}

impl RecordingHead {
    pub(crate) fn new(model: &str, computed_in: String) -> Self {
        Self { sconce_recording: VERSION, model: model.to_owned(), computed_in }
    }
}

/// A request that was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its id as its client knew it.
    pub request_id: String,
    /// Its prompt.
    pub prompt: Vec<TokenId>,
    /// How it went on from it, the seed included.
    pub params: SamplingParams,
    /// What was generated.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub end: End,
}

/// Why a recording cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a recording whole.
///
/// # Errors
/// It cannot be read, or a line of it is not a recorded request. A last line that was cut
/// off, as by a server that was killed, is left out.
pub fn read(path: &Path) -> Result<(RecordingHead, Vec<Recorded>), RecordingError> {
    let io = |source| RecordingError::Io { path: path.to_owned(), source };
    let line = |line, reason: String| RecordingError::Line { path: path.to_owned(), line, reason };
    let mut lines = BufReader::new(File::open(path).map_err(io)?).lines();
    let first = lines.next().transpose().map_err(io)?;
    let first = first.ok_or_else(|| line(1, "the file is empty".to_owned()))?;
    let head: RecordingHead =
        serde_json::from_str(&first).map_err(|error| line(1, error.to_string()))?;
    if head.sconce_recording != VERSION {
        let reason = format!("version {} of the format; {VERSION} is known", head.sconce_recording);
        return Err(line(1, reason));
    }
    let mut recorded = Vec::new();
    let mut lines = lines.enumerate().peekable();
    while let Some((index, text)) = lines.next() {
        match serde_json::from_str(&text.map_err(io)?) {
            Ok(request) => recorded.push(request),
            Err(error) if error.is_eof() && lines.peek().is_none() => {}
            Err(error) => return Err(line(index + 2, error.to_string())),
        }
    }
    Ok((head, recorded))
}

/// Writes requests as they end, on a thread of its own.
pub(crate) struct Recorder {
    queue: SyncSender<Line>,
    lost: u64,
}

/// A line of the file, or the wish that all be there.
pub(crate) enum Line {
    Head(RecordingHead),
    Request(Recorded),
    Flush(SyncSender<()>),
}

impl Recorder {
    /// Begins a recording, in a file that is not there yet. Its head is to be sent before
    /// anything is recorded.
    pub(crate) fn create(path: &Path) -> Result<(Self, SyncSender<Line>), RecordingError> {
        let io = |source| RecordingError::Io { path: path.to_owned(), source };
        let file = BufWriter::new(File::create_new(path).map_err(io)?);
        let (queue, recorded) = sync_channel(QUEUE);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("sconce-record".to_owned())
            .spawn(move || {
                if let Err(error) = write(file, &recorded) {
                    tracing::error!("{}: {error}; recording has stopped", path.display());
                }
            })
            .map_err(io)?;
        Ok((Self { queue: queue.clone(), lost: 0 }, queue))
    }
}

impl RecordSink for Recorder {
    fn record(&mut self, request: RecordedRequest) {
        let RecordedRequest { request_id, prompt, params, tokens, end, .. } = request;
        let request_id = request_id.to_string();
        let recorded = Recorded { request_id, prompt, params, tokens, end };
        if self.queue.try_send(Line::Request(recorded)).is_err() {
            self.lost += 1;
            if self.lost.is_power_of_two() {
                tracing::warn!("{} requests were not recorded: the disk is too slow", self.lost);
            }
        }
    }

    fn settle(&mut self) {
        let (reply, flushed) = sync_channel(1);
        if self.queue.send(Line::Flush(reply)).is_ok() {
            // A thread that could not write has said so.
            let _ = flushed.recv();
        }
    }
}

fn write(mut file: BufWriter<File>, recorded: &Receiver<Line>) -> std::io::Result<()> {
    loop {
        match recorded.recv_timeout(Duration::from_millis(100)) {
            Ok(Line::Head(head)) => write_line(&mut file, &head)?,
            Ok(Line::Request(request)) => write_line(&mut file, &request)?,
            Ok(Line::Flush(reply)) => {
                file.flush()?;
                // Whoever asked waits.
                let _ = reply.send(());
            }
            // Nothing comes at the moment: what came is put where it is safe.
            Err(RecvTimeoutError::Timeout) => file.flush()?,
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}

fn write_line(file: &mut BufWriter<File>, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sconce_types::RequestId;

    use super::*;

    #[test]
    fn a_recording_is_read_back_and_a_torn_end_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("recording.jsonl");
        let head = RecordingHead::new("m", "bf16".to_owned());
        let (mut recorder, begin) = Recorder::create(&path).expect("it can be written");
        begin.send(Line::Head(head.clone())).expect("the thread runs");
        drop(begin);
        let params = SamplingParams {
            temperature: 0.7,
            seed: u64::MAX,
            logit_bias: vec![(3, -0.1)],
            eos_token_ids: Arc::from([2]),
            ..SamplingParams::default()
        };
        for id in 0..3 {
            recorder.record(RecordedRequest {
                id: RequestId(id),
                request_id: format!("r{id}").into(),
                prompt: vec![1, 2],
                params: params.clone(),
                tokens: vec![5; 4],
                end: End::Length,
            });
        }
        recorder.settle();
        let whole = std::fs::read_to_string(&path).expect("it is there");
        let (read_head, recorded) = read(&path).expect("it is valid");
        assert_eq!(read_head, head);
        assert_eq!(recorded.len(), 3);
        assert_eq!(recorded[2].params, params);
        std::fs::write(&path, &whole[..whole.len() - 9]).expect("it can be written");
        assert_eq!(read(&path).expect("a torn end is no error").1.len(), 2);
        std::fs::write(&path, whole.replace("\"r1\"", "7")).expect("it can be written");
        let error = read(&path).expect_err("a line is wrong").to_string();
        assert!(error.contains("line 3"), "{error}");
    }
}
