//! Progress bars on a terminal; nothing elsewhere.

use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use sconce::hub::{self, Phase};

/// One bar at a time, whatever is being done.
#[derive(Clone)]
pub(crate) struct Bars(Arc<Mutex<Current>>);

struct Current {
    label: &'static str,
    bar: ProgressBar,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Current { label: "", bar: ProgressBar::hidden() })))
    }

    pub(crate) fn clear(&self) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.bar.finish_and_clear();
    }

    fn show(&self, label: &'static str, done: u64, total: u64, in_bytes: bool) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.label != label {
            current.bar.finish_and_clear();
            *current = Current { label, bar: bar(label, total, in_bytes) };
        }
        current.bar.set_length(total);
        current.bar.set_position(done);
    }
}

fn bar(label: &'static str, total: u64, in_bytes: bool) -> ProgressBar {
    let template = match (total, in_bytes) {
        (0, _) => "{spinner} {msg}",
        (_, true) => "{msg} {wide_bar} {bytes}/{total_bytes}",
        (_, false) => "{msg} {wide_bar} {pos}/{len}",
    };
    let bar = ProgressBar::new(total).with_message(label);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if total == 0 {
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
    }
    bar
}

impl hub::Progress for Bars {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        match phase {
            Phase::Download => self.show("downloading", done, total, true),
            Phase::Extract => self.show("extracting", done, total, true),
            Phase::Hash => self.show("hashing", done, total, true),
            Phase::Convert => self.show("converting", done, total, false),
        }
    }
}

impl sconce::Progress for Bars {
    fn tensors(&self, loaded: usize, total: usize) {
        self.show("loading", loaded as u64, total as u64, false);
    }

    fn graphs(&self, recorded: usize, total: usize) {
        self.show("recording CUDA graphs", recorded as u64, total as u64, false);
    }
}
