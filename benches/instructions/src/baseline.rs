//! The stored figures, and what is too much beside them.

use std::{collections::BTreeMap, fmt, fmt::Write as _, path::Path, process::Command};

use crate::callgrind::Counts;

/// How many per cent more instructions a case may take.
const MAX_UP: u64 = 5;

/// The table's first line.
pub(crate) const HEAD: &str = "case                         instructions       stored    change  \
                               heap calls   stored    change";

/// The compiler and the counter; other ones may count otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain(String);

impl Toolchain {
    pub(crate) fn here() -> Result<Self, String> {
        let version = |program: &str, hint: &str| {
            let output = Command::new(program).arg("--version").output();
            let output =
                output.map_err(|error| format!("{program}: {error}; it is needed{hint}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let valgrind = version("valgrind", " (Debian: apt-get install valgrind)")?;
        Ok(Self(format!("{}, {valgrind}", version("rustc", "")?)))
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stored figures by case.
pub(crate) struct Baseline {
    cases: BTreeMap<String, Counts>,
    toolchain: Toolchain,
}

/// What the guard says of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Over 5 % more instructions, or more heap calls.
    Up,
    /// There is nothing to compare with.
    NotStored,
}

/// A line of the table.
pub(crate) struct Row {
    name: String,
    stored: Option<Counts>,
    now: Counts,
    pub(crate) verdict: Verdict,
}

impl Baseline {
    /// Reads what [`Baseline::write`] wrote; a file that is not there is empty.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let (mut cases, mut toolchain) = (BTreeMap::new(), Toolchain(String::new()));
        for line in text.lines() {
            if let Some(with) = line.strip_prefix("# counted with ") {
                toolchain = Toolchain(with.to_owned());
            }
            if line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let mut word = || words.next().unwrap_or_default();
            let (name, instructions, heap_calls) = (word(), word().parse(), word().parse());
            let (Ok(instructions), Ok(heap_calls)) = (instructions, heap_calls) else {
                let expected = "a case, its instructions and its heap calls";
                return Err(format!("{} holds {line:?}, not {expected}", path.display()));
            };
            cases.insert(name.to_owned(), Counts { instructions, heap_calls });
        }
        Ok(Self { cases, toolchain })
    }

    pub(crate) fn compare(&self, name: &str, now: Counts) -> Row {
        let stored = self.cases.get(name).copied();
        let verdict = match stored {
            None => Verdict::NotStored,
            Some(stored)
                if now.instructions * 100 > stored.instructions * (100 + MAX_UP)
                    || now.heap_calls > stored.heap_calls =>
            {
                Verdict::Up
            }
            Some(_) => Verdict::Good,
        };
        Row { name: name.to_owned(), stored, now, verdict }
    }

    pub(crate) fn store(&mut self, name: &str, now: Counts) {
        self.cases.insert(name.to_owned(), now);
    }

    /// Stores the named cases' figures, in this order, and forgets all others.
    pub(crate) fn write(
        &self,
        path: &Path,
        names: &[&str],
        toolchain: &Toolchain,
    ) -> Result<(), String> {
        let mut text = format!(
            "# Instructions and heap calls of each case of benches/instructions.\n\
             # Written by `just instructions --update`; more than {MAX_UP} % up\n\
             # in instructions, or at all in heap calls, fails tests/run.\n\
             # counted with {toolchain}\n"
        );
        for name in names {
            if let Some(Counts { instructions, heap_calls }) = self.cases.get(*name) {
                writeln!(text, "{name:<28} {instructions:>12} {heap_calls:>8}")
                    .expect("a string takes every line");
            }
        }
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Says so if the figures were stored with other tools than these.
    pub(crate) fn explain(&self, toolchain: &Toolchain) {
        if self.toolchain != *toolchain {
            println!("# the stored figures were counted with {}", self.toolchain);
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, stored, now, verdict } = self;
        let pair = |now: u64, stored: Option<u64>| {
            let change = match stored {
                None => "new".to_owned(),
                Some(stored) if stored == now => "=".to_owned(),
                Some(0) => "+".to_owned(),
                Some(stored) => format!("{:+.2} %", (now as f64 / stored as f64 - 1.0) * 100.0),
            };
            (now, stored.map_or_else(|| "-".to_owned(), |stored| stored.to_string()), change)
        };
        let (now_ir, ir, ir_change) = pair(now.instructions, stored.map(|s| s.instructions));
        let (now_heap, heap, heap_change) = pair(now.heap_calls, stored.map(|s| s.heap_calls));
        write!(
            f,
            "{name:<28} {now_ir:>12} {ir:>12} {ir_change:>9}  {now_heap:>10} {heap:>8} {heap_change:>9}"
        )?;
        match verdict {
            Verdict::Good => Ok(()),
            Verdict::Up => write!(f, "  UP"),
            Verdict::NotStored => write!(f, "  NOT STORED"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: u64, heap_calls: u64) -> Counts {
        Counts { instructions, heap_calls }
    }

    #[test]
    fn more_than_five_per_cent_or_one_heap_call_more_is_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("instructions.txt");
        let toolchain = Toolchain("rustc 1, valgrind 2".to_owned());
        let mut baseline = Baseline::read(&path).expect("no file is an empty one");
        baseline.store("a", counts(1000, 7));
        baseline.store("gone", counts(1, 1));
        baseline.write(&path, &["a"], &toolchain).expect("it is written");
        let baseline = Baseline::read(&path).expect("it is read back");
        assert_eq!(baseline.toolchain, toolchain);
        for (name, now, verdict) in [
            ("a", counts(1000, 7), Verdict::Good),
            ("a", counts(1050, 7), Verdict::Good),
            ("a", counts(1051, 7), Verdict::Up),
            ("a", counts(1000, 8), Verdict::Up),
            ("a", counts(1, 0), Verdict::Good),
            ("gone", counts(1, 1), Verdict::NotStored),
        ] {
            assert_eq!(baseline.compare(name, now).verdict, verdict, "{name}, {now:?}");
        }
    }

    #[test]
    fn a_line_that_is_no_figure_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("instructions.txt");
        std::fs::write(&path, "a 12 many\n").expect("it is written");
        let error = Baseline::read(&path).err().expect("it is refused");
        assert!(error.contains("a 12 many"), "{error}");
    }
}
