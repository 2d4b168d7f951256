//! `sconce doctor`: what GPU there is, and by which forms its operations are computed.

use std::fmt::Write as _;

use sconce::{Examined, Findings, LoadError, Trial, Verdict};

use crate::pull::CacheArgs;

/// Flags of `sconce doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    cache: CacheArgs,
}

/// Tries the forms and says what came of it.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.cache.hub_options().forms_dir();
    match sconce::examine(&folder) {
        Ok(examined) => {
            print!("{}", report(&examined));
            println!("kept in {}", folder.display());
            Ok(examined.error.map_or(Ok(()), Err)?)
        }
        Err(LoadError::NoDevice { reason }) => {
            println!("GPU       none: {reason}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Each operation's forms: what they take, beside what they took when they were last tried, and
/// which is used.
fn report(Examined { device, before, found, .. }: &Examined) -> String {
    let mut text = format!("GPU       {device}\nsetting   {}\n", found.setting());
    let mut last = "";
    for Trial { operation, form, verdict } in found.trials() {
        if operation != last {
            let _ = writeln!(text, "\n{operation}");
            last = operation;
        }
        let is_used = found.best(operation) == Some(form);
        let mark = if is_used { '*' } else { ' ' };
        let _ = write!(text, "{mark} {form:<42} {}", told(verdict));
        match known(before, operation, form) {
            Some(earlier) if earlier != verdict => {
                let _ = writeln!(text, " (before: {})", told(earlier));
            }
            _ => text.push('\n'),
        }
    }
    text.push_str("\n* is used\n");
    text
}

fn known<'a>(before: &'a Findings, operation: &str, form: &str) -> Option<&'a Verdict> {
    let same = |trial: &&Trial| trial.operation == operation && trial.form == form;
    before.trials().iter().find(same).map(|trial| &trial.verdict)
}

fn told(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Right(time) => format!("{:>9.1} \u{b5}s", time.as_secs_f64() * 1e6),
        Verdict::Wrong(how) => format!("WRONG: {how}"),
        Verdict::Failed(why) => format!("FAILED: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_report_names_what_is_used_and_what_is_not() {
        let put = |found: &mut Findings, form: &str, verdict| {
            let (operation, form) = ("a product".to_owned(), form.to_owned());
            found.put(Trial { operation, form, verdict });
        };
        let mut found = Findings::new("a setting");
        put(&mut found, "plain", Verdict::Right(Duration::from_micros(20)));
        let before = found.clone();
        put(&mut found, "fast", Verdict::Right(Duration::from_micros(10)));
        put(&mut found, "odd", Verdict::Wrong("3, not 4".to_owned()));
        put(&mut found, "plain", Verdict::Right(Duration::from_micros(21)));
        let text = report(&Examined { device: "a GPU".to_owned(), before, found, error: None });
        let line = |begin: &str| text.lines().find(|line| line.starts_with(begin)).expect(begin);
        assert!(line("* fast").ends_with("10.0 \u{b5}s"), "{text}");
        assert!(line("  odd").ends_with("WRONG: 3, not 4"), "{text}");
        assert!(line("  plain").contains("21.0") && line("  plain").contains("before:"), "{text}");
    }
}
