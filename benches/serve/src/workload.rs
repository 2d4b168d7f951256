//! What is asked: prompts made of common words, and the lengths of answers.

use rand::{Rng, RngExt as _};

/// Common words. With a space in front each is one token of the byte-level BPE
/// vocabularies in use, so a prompt's words are nearly its tokens; the report
/// gives the server's own count.
const WORDS: &str = include_str!("words.txt");

/// Mean lengths of ShareGPT conversations, in tokens (Kwon et al., 2023, figure 11).
const SHAREGPT_INPUT: f64 = 161.31;
const SHAREGPT_OUTPUT: f64 = 337.99;
/// The spread of their logarithms, chosen for the figure's long tails.
const SHAREGPT_SIGMA: f64 = 1.0;
/// Lengths are cut here, as `vllm bench serve` leaves longer ones out.
const SHAREGPT_MAX: f64 = 1024.0;

/// Whose lengths the requests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DatasetName {
    /// Fixed lengths, or uniform about them
    Random,
    /// Log-normal lengths with the means of ShareGPT's
    SharegptLike,
    /// A few prefixes, each shared by many prompts
    PrefixRepetition,
}

/// Flags of the workload, named as in `vllm bench serve`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WorkloadArgs {
    /// Whose lengths the requests have
    #[arg(long, value_enum, default_value_t = DatasetName::Random)]
    pub(crate) dataset_name: DatasetName,
    /// random: words of a prompt, about its tokens
    #[arg(long, default_value_t = 128)]
    random_input_len: usize,
    /// random: tokens of an answer
    #[arg(long, default_value_t = 128)]
    random_output_len: usize,
    /// random: lengths are uniform within this share of them, at least 0 and below 1
    #[arg(long, default_value_t = 0.0)]
    random_range_ratio: f64,
    /// prefix-repetition: words of a prefix
    #[arg(long, default_value_t = 256)]
    prefix_repetition_prefix_len: usize,
    /// prefix-repetition: words after it
    #[arg(long, default_value_t = 256)]
    prefix_repetition_suffix_len: usize,
    /// prefix-repetition: how many prefixes there are
    #[arg(long, default_value_t = 10)]
    prefix_repetition_num_prefixes: usize,
    /// prefix-repetition: tokens of an answer
    #[arg(long, default_value_t = 128)]
    prefix_repetition_output_len: usize,
}

/// One request's prompt, and the tokens it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) prompt: String,
    pub(crate) max_tokens: usize,
}

impl WorkloadArgs {
    /// Says which flag makes no sense, if one does.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, String, &'static str)> {
        let least = [
            ("--random-input-len", self.random_input_len),
            ("--random-output-len", self.random_output_len),
            ("--prefix-repetition-prefix-len", self.prefix_repetition_prefix_len),
            ("--prefix-repetition-num-prefixes", self.prefix_repetition_num_prefixes),
            ("--prefix-repetition-output-len", self.prefix_repetition_output_len),
        ];
        if let Some((flag, _)) = least.into_iter().find(|(_, value)| *value == 0) {
            return Err((flag, "0".to_owned(), "at least 1"));
        }
        let ratio = self.random_range_ratio;
        if !(0.0..1.0).contains(&ratio) {
            return Err(("--random-range-ratio", ratio.to_string(), "at least 0 and below 1"));
        }
        Ok(())
    }

    /// `count` requests; the same seed gives the same ones.
    pub(crate) fn asks(&self, count: usize, rng: &mut impl Rng) -> Vec<Ask> {
        let vocabulary: Vec<&str> = WORDS.split_ascii_whitespace().collect();
        let mut prefixes = Vec::new();
        if self.dataset_name == DatasetName::PrefixRepetition {
            let len = self.prefix_repetition_prefix_len;
            let all = 0..self.prefix_repetition_num_prefixes;
            prefixes = all.map(|_| words(&vocabulary, len, rng)).collect();
        }
        (0..count)
            .map(|index| match self.dataset_name {
                DatasetName::Random => {
                    let (input, output) = (self.random_input_len, self.random_output_len);
                    let input = about(input, self.random_range_ratio, rng);
                    let max_tokens = about(output, self.random_range_ratio, rng);
                    Ask { prompt: words(&vocabulary, input, rng), max_tokens }
                }
                DatasetName::SharegptLike => {
                    let input = log_normal(SHAREGPT_INPUT, rng);
                    let max_tokens = log_normal(SHAREGPT_OUTPUT, rng);
                    Ask { prompt: words(&vocabulary, input, rng), max_tokens }
                }
                DatasetName::PrefixRepetition => {
                    let suffix = words(&vocabulary, self.prefix_repetition_suffix_len, rng);
                    let prompt = prefixes[index % prefixes.len()].clone() + &suffix;
                    Ask { prompt, max_tokens: self.prefix_repetition_output_len }
                }
            })
            .collect()
    }
}

fn words(vocabulary: &[&str], len: usize, rng: &mut impl Rng) -> String {
    let mut text = String::new();
    for _ in 0..len {
        text.push(' ');
        text.push_str(vocabulary[rng.random_range(0..vocabulary.len())]);
    }
    text
}

fn about(len: usize, ratio: f64, rng: &mut impl Rng) -> usize {
    let spread = (len as f64 * ratio) as usize;
    rng.random_range(len - spread..=len + spread).max(1)
}

/// A length whose mean is `mean` before it is cut off.
fn log_normal(mean: f64, rng: &mut impl Rng) -> usize {
    let mu = mean.ln() - SHAREGPT_SIGMA * SHAREGPT_SIGMA / 2.0;
    // Box and Muller, 1958.
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (mu + SHAREGPT_SIGMA * normal).exp().clamp(4.0, SHAREGPT_MAX).round() as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        workload: WorkloadArgs,
    }

    fn asks(flags: &[&str], count: usize) -> Vec<Ask> {
        let flags = Flags::parse_from([&["bench"], flags].concat());
        flags.workload.validate().expect("the flags make sense");
        flags.workload.asks(count, &mut StdRng::seed_from_u64(3))
    }

    fn len(ask: &Ask) -> usize {
        ask.prompt.split_ascii_whitespace().count()
    }

    #[test]
    fn random_prompts_have_the_asked_length_and_are_all_different() {
        let asks = asks(&["--random-input-len", "100", "--random-output-len", "7"], 50);
        assert!(asks.iter().all(|ask| len(ask) == 100 && ask.max_tokens == 7));
        assert_eq!(asks.iter().map(|ask| &ask.prompt).collect::<BTreeSet<_>>().len(), 50);
        assert!(asks[0].prompt.starts_with(' '));
    }

    #[test]
    fn a_range_is_filled_and_kept() {
        let flags = ["--random-input-len", "100", "--random-range-ratio", "0.2"];
        let lens: BTreeSet<_> = asks(&flags, 2_000).iter().map(len).collect();
        assert_eq!((lens.first(), lens.last()), (Some(&80), Some(&120)));
    }

    #[test]
    fn sharegpt_like_lengths_have_its_means() {
        let asks = asks(&["--dataset-name", "sharegpt-like"], 20_000);
        let mean = |of: fn(&Ask) -> usize| asks.iter().map(of).sum::<usize>() as f64 / 2e4;
        // Cutting the tail off takes a little of the longer one.
        assert!((150.0..170.0).contains(&mean(len)), "{}", mean(len));
        assert!((280.0..338.0).contains(&mean(|ask| ask.max_tokens)));
        assert!(asks.iter().all(|ask| (4..=1024).contains(&len(ask))));
    }

    #[test]
    fn prefixes_are_shared_in_turn() {
        let asks = asks(
            &[
                "--dataset-name=prefix-repetition",
                "--prefix-repetition-num-prefixes=3",
                "--prefix-repetition-prefix-len=20",
                "--prefix-repetition-suffix-len=5",
            ],
            9,
        );
        let prefix =
            |ask: &Ask| ask.prompt.split_ascii_whitespace().take(20).collect::<Vec<_>>().join(" ");
        assert_eq!(prefix(&asks[0]), prefix(&asks[3]));
        assert_ne!(prefix(&asks[0]), prefix(&asks[1]));
        assert!(asks.iter().all(|ask| len(ask) == 25));
        assert_eq!(asks.iter().map(|ask| &ask.prompt).collect::<BTreeSet<_>>().len(), 9);
    }
}
