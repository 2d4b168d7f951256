//! What a batch is, and the states that it goes through.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchStatus)]
pub enum Status {
    /// Its input is to be checked.
    Validating,
    /// Its input is wrong; nothing was run.
    Failed,
    /// Its requests are run.
    InProgress,
    /// All have answers, which are put together.
    Finalizing,
    /// Its answers are files.
    Completed,
    /// Its time was over before all had run.
    Expired,
    /// No more requests are begun.
    Cancelling,
    /// It was given up; what had answers is a file.
    Cancelled,
}

impl Status {
    /// As the API writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// Requests by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchCounts)]
pub struct Counts {
    /// Of the input.
    pub total: usize,
    /// With an answer of status 200.
    pub completed: usize,
    /// With any other.
    pub failed: usize,
}

/// What is wrong with a line of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, ToSchema)]
#[error("line {}: {message}", line.unwrap_or(0))]
#[schema(as = BatchError)]
pub struct LineError {
    /// A name for the kind.
    pub code: String,
    /// What a person is told.
    pub message: String,
    /// The field at fault.
    #[schema(required)]
    pub param: Option<String>,
    /// Counted from 1.
    #[schema(required)]
    pub line: Option<usize>,
}

/// OpenAI's list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchErrors)]
pub struct LineErrors {
    object: String,
    /// The first ones.
    pub data: Vec<LineError>,
}

impl LineErrors {
    /// A list.
    #[must_use]
    pub fn new(data: Vec<LineError>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}

/// A batch as OpenAI's API shows it. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// `batch_…`
    pub id: String,
    object: String,
    /// The path that all requests go to.
    pub endpoint: String,
    /// What is wrong with the input.
    #[schema(required)]
    pub errors: Option<LineErrors>,
    /// The requests.
    pub input_file_id: String,
    /// The time that it has, as it was asked for.
    pub completion_window: String,
    /// How far it is.
    pub status: Status,
    /// The answers of status 200.
    #[schema(required)]
    pub output_file_id: Option<String>,
    /// The others.
    #[schema(required)]
    pub error_file_id: Option<String>,
    /// When it was made.
    pub created_at: u64,
    /// When its input was found right.
    #[schema(required)]
    pub in_progress_at: Option<u64>,
    /// When its time is over.
    pub expires_at: u64,
    /// When the last request had its answer.
    #[schema(required)]
    pub finalizing_at: Option<u64>,
    /// When its answers were files.
    #[schema(required)]
    pub completed_at: Option<u64>,
    /// When its input was found wrong.
    #[schema(required)]
    pub failed_at: Option<u64>,
    /// When its time was over.
    #[schema(required)]
    pub expired_at: Option<u64>,
    /// When it was given up.
    #[schema(required)]
    pub cancelling_at: Option<u64>,
    /// When the requests that ran then had ended.
    #[schema(required)]
    pub cancelled_at: Option<u64>,
    /// Requests by what became of them.
    pub request_counts: Counts,
    /// The client's own notes.
    #[schema(required)]
    pub metadata: Option<Map<String, Value>>,
}

impl Batch {
    /// A batch that nothing was done for.
    #[must_use]
    pub fn new(
        id: String,
        input_file_id: String,
        endpoint: String,
        now: u64,
        seconds: u64,
    ) -> Self {
        Self {
            id,
            object: "batch".to_owned(),
            endpoint,
            errors: None,
            input_file_id,
            completion_window: format!("{}h", seconds / 3600),
            status: Status::Validating,
            output_file_id: None,
            error_file_id: None,
            created_at: now,
            in_progress_at: None,
            expires_at: now + seconds,
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            request_counts: Counts::default(),
            metadata: None,
        }
    }

    /// Its input is right: so many requests.
    pub fn begin(&mut self, total: usize, now: u64) {
        self.expect(&[Status::Validating]);
        self.status = Status::InProgress;
        self.in_progress_at = Some(now);
        self.request_counts.total = total;
    }

    /// Its input is wrong.
    pub fn fail(&mut self, errors: Vec<LineError>, now: u64) {
        self.expect(&[Status::Validating]);
        self.status = Status::Failed;
        self.failed_at = Some(now);
        self.errors = Some(LineErrors::new(errors));
    }

    /// It is given up. Says whether it was not already, and had not ended.
    pub fn cancel(&mut self, now: u64) -> bool {
        let may = matches!(self.status, Status::Validating | Status::InProgress);
        if may {
            self.status = Status::Cancelling;
            self.cancelling_at = Some(now);
        }
        may
    }

    /// All that will have answers have them, which go into these files.
    pub fn finalize(&mut self, output: String, error: String, now: u64) {
        self.expect(&[Status::InProgress, Status::Cancelling]);
        if self.status == Status::InProgress {
            self.status = Status::Finalizing;
        }
        self.finalizing_at = Some(now);
        (self.output_file_id, self.error_file_id) = (Some(output), Some(error));
    }

    /// Its answers are files, of these lengths: an empty one is none.
    pub fn end(&mut self, counts: Counts, [output, errors]: [u64; 2], now: u64) {
        self.expect(&[Status::Finalizing, Status::Cancelling]);
        self.request_counts = counts;
        self.output_file_id = self.output_file_id.take().filter(|_| output > 0);
        self.error_file_id = self.error_file_id.take().filter(|_| errors > 0);
        let is_whole = counts.completed + counts.failed == counts.total;
        if self.status == Status::Cancelling {
            self.status = Status::Cancelled;
            self.cancelled_at = Some(now);
        } else if is_whole {
            self.status = Status::Completed;
            self.completed_at = Some(now);
        } else {
            self.status = Status::Expired;
            self.expired_at = Some(now);
        }
    }

    fn expect(&self, among: &[Status]) {
        assert!(among.contains(&self.status), "{} is {:?}, not of {among:?}", self.id, self.status);
    }
}
