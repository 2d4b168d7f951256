//! Which form of an operation to use on a device: those that gave what they should, and of
//! those the fastest. What was found is kept in a file, since it holds for every device of a
//! kind.

use std::{fs, io, path::Path, time::Duration};

use crate::KernelError;

/// What the file begins with; another number, another format.
const HEAD: &str = "sconce forms 1";
/// A form is left for one further down its operation's list only if that takes less than so
/// much of its time: what is measured varies.
const WORTH_IT: f64 = 0.97;

/// A form of an operation, and what came of trying it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The operation, with what its forms' times depend on.
    pub operation: String,
    /// The form.
    pub form: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of trying a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its results are right, and it takes so long.
    Right(Duration),
    /// Its results are wrong; how.
    Wrong(String),
    /// It gave no results; why.
    Failed(String),
}

impl Trial {
    /// Why the form is never used, if it is not.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match &self.verdict {
            Verdict::Right(_) => None,
            Verdict::Wrong(how) => Some(format!("gave wrong results: {how}")),
            Verdict::Failed(why) => Some(format!("failed: {why}")),
        }
    }
}

/// What was found out in one setting: a kind of device with its driver and libraries, and a
/// build of this program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    setting: String,
    /// Forms of an operation in the order in which they are preferred.
    trials: Vec<Trial>,
}

impl Findings {
    /// Of a setting in which nothing is known.
    #[must_use]
    pub fn new(setting: &str) -> Self {
        Self { setting: one_line(setting), trials: Vec::new() }
    }

    /// What a folder holds of the setting; nothing if no file there can be read.
    #[must_use]
    pub fn read(folder: &Path, setting: &str) -> Self {
        let new = Self::new(setting);
        let text = fs::read_to_string(folder.join(new.file_name())).unwrap_or_default();
        Self::parse(&text).filter(|found| found.setting == new.setting).unwrap_or(new)
    }

    /// Puts them into a folder, for [`Self::read`].
    ///
    /// # Errors
    /// The folder takes no files.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let path = folder.join(self.file_name());
        // Whole or not at all: other processes may read it.
        let half = path.with_extension(format!("{}", std::process::id()));
        fs::write(&half, self.to_text())?;
        fs::rename(half, path)
    }

    /// The file of the setting.
    fn file_name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        format!("forms-{}.txt", self.setting.chars().map(plain).collect::<String>())
    }

    /// The device, its driver and libraries, and the build, in words.
    #[must_use]
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// All trials.
    #[must_use]
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Whether a form of the operation was tried.
    #[must_use]
    pub fn knows(&self, operation: &str, form: &str) -> bool {
        self.of(operation).any(|trial| trial.form == form)
    }

    /// Replaces what was known of the form, or adds it.
    pub fn put(&mut self, trial: Trial) {
        let trial = Trial {
            operation: one_line(&trial.operation),
            form: one_line(&trial.form),
            verdict: match trial.verdict {
                right @ Verdict::Right(_) => right,
                Verdict::Wrong(how) => Verdict::Wrong(one_line(&how)),
                Verdict::Failed(why) => Verdict::Failed(one_line(&why)),
            },
        };
        let same =
            |known: &&mut Trial| known.operation == trial.operation && known.form == trial.form;
        match self.trials.iter_mut().find(same) {
            Some(known) => *known = trial,
            None => self.trials.push(trial),
        }
    }

    /// Tries a form that is not known yet; `attempt` says what came of it. `keep` is told
    /// before that it failed: it may end the process.
    ///
    /// # Errors
    /// The device is lost: nothing more can be tried, and what was kept names the form.
    pub(crate) fn try_form(
        &mut self,
        operation: &str,
        form: &str,
        keep: &mut dyn FnMut(&Self),
        attempt: impl FnOnce() -> Result<Verdict, KernelError>,
    ) -> Result<(), KernelError> {
        if self.knows(operation, form) {
            return Ok(());
        }
        let trial =
            |verdict| Trial { operation: operation.to_owned(), form: form.to_owned(), verdict };
        self.put(trial(Verdict::Failed("the process ended in the trial".to_owned())));
        keep(self);
        let verdict = match attempt() {
            Err(lost @ KernelError::Device { sticky: true, .. }) => return Err(lost),
            Err(error) => Verdict::Failed(error.to_string()),
            Ok(verdict) => verdict,
        };
        self.put(trial(verdict));
        Ok(())
    }

    /// The error of an operation that was tried and has no right form.
    pub(crate) fn none_is_right(operation: &str) -> KernelError {
        KernelError::Device {
            op: operation.to_owned(),
            reason: "no form of it gives right results".to_owned(),
            sticky: false,
        }
    }

    /// Forgets what was tried of an operation.
    pub fn forget(&mut self, operation: &str) {
        self.trials.retain(|trial| trial.operation != operation);
    }

    /// The form to use for the operation: of the right ones the fastest, or one before it in
    /// the list that is nearly as fast. `None` if none is right, or nothing is known.
    #[must_use]
    pub fn best(&self, operation: &str) -> Option<&str> {
        let mut best: Option<(&str, Duration)> = None;
        for trial in self.of(operation) {
            let Verdict::Right(time) = trial.verdict else { continue };
            if best.is_none_or(|(_, known)| time.as_secs_f64() < known.as_secs_f64() * WORTH_IT) {
                best = Some((&trial.form, time));
            }
        }
        best.map(|(form, _)| form)
    }

    fn of(&self, operation: &str) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(move |trial| trial.operation == operation)
    }

    fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\n{}\n", self.setting);
        for Trial { operation, form, verdict } in &self.trials {
            let (kind, what) = match verdict {
                Verdict::Right(time) => ("right", time.as_nanos().to_string()),
                Verdict::Wrong(how) => ("wrong", how.clone()),
                Verdict::Failed(why) => ("failed", why.clone()),
            };
            text.push_str(&format!("{operation}\t{form}\t{kind}\t{what}\n"));
        }
        text
    }

    /// `None` for what [`Self::to_text`] has not written whole.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) || !text.ends_with('\n') {
            return None;
        }
        let mut found = Self::new(lines.next()?);
        for line in lines {
            let mut parts = line.split('\t');
            let mut part = || parts.next().map(str::to_owned);
            let (operation, form, kind, what) = (part()?, part()?, part()?, part()?);
            let verdict = match kind.as_str() {
                "right" => Verdict::Right(Duration::from_nanos(what.parse().ok()?)),
                "wrong" => Verdict::Wrong(what),
                "failed" => Verdict::Failed(what),
                _ => return None,
            };
            found.put(Trial { operation, form, verdict });
        }
        Some(found)
    }
}

/// Without what the file's lines are made of.
fn one_line(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(operation: &str, form: &str, verdict: Verdict) -> Trial {
        Trial { operation: operation.to_owned(), form: form.to_owned(), verdict }
    }

    fn right(micros: u64) -> Verdict {
        Verdict::Right(Duration::from_micros(micros))
    }

    fn found() -> Findings {
        let mut found = Findings::new("a GPU, driver 1");
        found.put(trial("product", "library", right(100)));
        found.put(trial("product", "own", right(80)));
        found.put(trial("product", "odd", Verdict::Wrong("3, not\n4".to_owned())));
        found.put(trial("norm", "plain", Verdict::Failed("refused".to_owned())));
        found
    }

    #[test]
    fn the_fastest_right_form_is_used() {
        let mut found = found();
        assert_eq!(found.best("product"), Some("own"));
        // Nearly as fast is no reason to leave the first.
        found.put(trial("product", "own", right(99)));
        assert_eq!(found.best("product"), Some("library"));
        found.put(trial("product", "odd", right(1)));
        assert_eq!(found.best("product"), Some("odd"));
        found.put(trial("product", "odd", Verdict::Wrong(String::new())));
        found.put(trial("product", "library", Verdict::Wrong(String::new())));
        assert_eq!(found.best("product"), Some("own"));
        assert_eq!((found.best("norm"), found.best("gate")), (None, None));
    }

    #[test]
    fn a_file_holds_what_was_put_there_for_its_setting_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = found();
        found.write(folder.path()).expect("the folder takes files");
        assert_eq!(Findings::read(folder.path(), "a GPU, driver 1"), found);
        assert_eq!(Findings::read(folder.path(), "a GPU, driver 2").trials(), []);
        // A setting whose file has the same name is another.
        assert_eq!(Findings::read(folder.path(), "a GPU; driver 1").trials(), []);
    }

    #[test]
    fn what_is_not_whole_is_not_believed() {
        let text = found().to_text();
        assert_eq!(Findings::parse(&text), Some(found()));
        assert_eq!(Findings::parse(&text[..text.len() - 1]), None);
        assert_eq!(Findings::parse(&text.replace("forms 1", "forms 2")), None);
        assert_eq!(Findings::parse(&text.replace("right", "good")), None);
        assert_eq!(Findings::parse(""), None);
    }
}
