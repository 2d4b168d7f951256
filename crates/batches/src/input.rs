//! A batch's input: a request a line.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use serde_json::{Map, Value};

use crate::{
    batch::LineError,
    disk::{StoreError, io_error},
};

/// Requests of a batch at most, as in OpenAI's API.
pub const MAX_REQUESTS: usize = 50_000;
/// Wrong lines that are told of.
const MAX_ERRORS: usize = 20;
/// Characters of a `custom_id` at most.
const MAX_CUSTOM_ID: usize = 512;
/// The fields of a line.
const FIELDS: [&str; 4] = ["custom_id", "method", "url", "body"];

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The client's own name for it.
    pub custom_id: String,
    /// What is sent to the endpoint.
    pub body: Map<String, Value>,
}

/// Where the requests of a file stand.
#[derive(Debug)]
pub struct Input {
    file: File,
    /// Where each line begins, and its length.
    lines: Vec<(u64, usize)>,
    endpoint: String,
}

impl Input {
    /// Checks every line of a file: each is a request to the endpoint of at most `max_bytes`
    /// bytes, with a name of its own.
    ///
    /// # Errors
    /// The file cannot be read; or what is wrong with its first wrong lines.
    pub fn read(
        path: &Path,
        endpoint: &str,
        max_bytes: usize,
    ) -> Result<Result<Self, Vec<LineError>>, StoreError> {
        let file = File::open(path).map_err(io_error(path))?;
        let mut reader = BufReader::new(&file);
        let (mut lines, mut names, mut errors) = (Vec::new(), HashSet::new(), Vec::new());
        let (mut at, mut number) = (0_u64, 0);
        let mut text = Vec::new();
        loop {
            text.clear();
            // A longer line is not read into memory.
            let most = max_bytes as u64 + 2;
            let len = reader.by_ref().take(most).read_until(b'\n', &mut text);
            let len = len.map_err(io_error(path))?;
            if len == 0 {
                break;
            }
            number += 1;
            let start = at;
            at += len as u64;
            let line = text.trim_ascii();
            let error = if len as u64 == most && !text.ends_with(b"\n") {
                let rest = skip_line(&mut reader).map_err(io_error(path))?;
                at += rest;
                Some(wrong("line_too_long", format!("a line has at most {max_bytes} bytes"), None))
            } else if line.is_empty() {
                continue;
            } else {
                match parse(line, endpoint) {
                    Ok(line) if names.contains(&line.custom_id) => Some(wrong(
                        "duplicate_custom_id",
                        format!("custom_id {:?} stands on an earlier line too", line.custom_id),
                        Some("custom_id"),
                    )),
                    Ok(line) => {
                        names.insert(line.custom_id);
                        lines.push((start, len));
                        None
                    }
                    Err(error) => Some(error),
                }
            };
            if let Some(error) = error {
                errors.push(LineError { line: Some(number), ..error });
            }
            if errors.len() == MAX_ERRORS {
                break;
            }
            if lines.len() > MAX_REQUESTS {
                let message = format!("the file has more than {MAX_REQUESTS} requests");
                errors.push(wrong("too_many_requests", message, None));
                break;
            }
        }
        if errors.is_empty() && lines.is_empty() {
            errors.push(wrong("empty_file", "the file has no request".to_owned(), None));
        }
        if !errors.is_empty() {
            return Ok(Err(errors));
        }
        Ok(Ok(Self { file, lines, endpoint: endpoint.to_owned() }))
    }

    /// Requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none, which is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// A request, counted from 0.
    ///
    /// # Errors
    /// The file cannot be read, or has changed.
    pub fn line(&mut self, index: usize) -> std::io::Result<Line> {
        let (at, len) = self.lines[index];
        let mut text = vec![0; len];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut text)?;
        parse(text.trim_ascii(), &self.endpoint).map_err(std::io::Error::other)
    }
}

/// Skips the rest of a line; its length.
fn skip_line(reader: &mut BufReader<&File>) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let len = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(len);
        skipped += len as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

fn wrong(code: &str, message: String, param: Option<&str>) -> LineError {
    let param = param.map(str::to_owned);
    LineError { code: code.to_owned(), message, param, line: None }
}

fn parse(line: &[u8], endpoint: &str) -> Result<Line, LineError> {
    let fields: Map<String, Value> = serde_json::from_slice(line)
        .map_err(|error| wrong("invalid_json_line", format!("no JSON object: {error}"), None))?;
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let message = format!("{unknown:?} is no field of a request: {}", FIELDS.join(", "));
        return Err(wrong("unknown_parameter", message, Some(unknown)));
    }
    let text = |name: &str| -> Result<&str, LineError> {
        let refuse = |what: &str| {
            wrong("invalid_request", format!("{name} {what}, but must be a string"), Some(name))
        };
        match fields.get(name) {
            None => Err(refuse("is missing")),
            Some(value) => value.as_str().ok_or_else(|| refuse("is no string")),
        }
    };
    let custom_id = text("custom_id")?;
    if custom_id.is_empty() || custom_id.chars().count() > MAX_CUSTOM_ID {
        let message = format!("custom_id must have 1 to {MAX_CUSTOM_ID} characters");
        return Err(wrong("invalid_custom_id", message, Some("custom_id")));
    }
    let method = text("method")?;
    if method != "POST" {
        let message = format!("method is {method:?}, but must be \"POST\"");
        return Err(wrong("invalid_method", message, Some("method")));
    }
    let url = text("url")?;
    if url != endpoint {
        let message = format!("url is {url:?}, but must be the batch's endpoint, {endpoint:?}");
        return Err(wrong("invalid_url", message, Some("url")));
    }
    let Some(Value::Object(body)) = fields.get("body") else {
        let message = "body must be a JSON object".to_owned();
        return Err(wrong("invalid_request", message, Some("body")));
    };
    if body.get("stream").is_some_and(|stream| *stream != Value::Bool(false) && !stream.is_null()) {
        let message = "stream cannot be asked for in a batch".to_owned();
        return Err(wrong("invalid_request", message, Some("body.stream")));
    }
    Ok(Line { custom_id: custom_id.to_owned(), body: body.clone() })
}
