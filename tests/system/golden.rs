//! The model's numbers against those of transformers.

use proptest::{prelude::*, test_runner::TestRunner};
use sconce::{Dtype, Quantization, TextConfig, TextModel};
use sconce_engine::EngineHandle;
use sconce_kernels::cpu::Cpu;
use sconce_runner::{LoadOptions, ModelRunner};
use sconce_types::SamplingParams;
use serde_json::Value;

use crate::model;

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list of token ids");
    ids.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("32 bits")).collect()
}

/// How close the two best logits may be for another greedy token than transformers'.
const MARGIN: f64 = 0.01;

/// Greedy tokens in f32 are transformers', wherever the two best logits are not
/// too close to call.
#[test]
fn greedy_tokens_in_f32_are_those_of_transformers() {
    let engine = model::engine(model::options(Dtype::F32), None);
    let golden = model::reference_json("golden.json");
    let cases = golden.as_array().expect("a list of cases");
    assert_eq!(cases.len(), 20);
    let close_calls: usize = cases.iter().map(|case| check_greedy(&engine, case)).sum();
    assert!(close_calls <= 5, "{close_calls} positions were too close to call");
}

/// Checks the greedy tokens of a case, and gives the positions where they are not
/// transformers' but too close to call.
pub(crate) fn check_greedy(engine: &EngineHandle, case: &Value) -> usize {
    let mut close_calls = 0;
    let mut context = ids(&case["prompt"]);
    let tokens = ids(&case["tokens"]);
    let margins = case["margins"].as_array().expect("a margin a token");
    assert_eq!(tokens.len(), 64);
    let mut at = 0;
    while at < tokens.len() {
        let max_tokens = u32::try_from(tokens.len() - at).expect("64 at most");
        let params = SamplingParams { max_tokens, temperature: 0.0, ..Default::default() };
        let answer = model::run(engine, &context, &params);
        let same = answer.tokens.iter().zip(&tokens[at..]).take_while(|(a, b)| a == b).count();
        at += same;
        if at == tokens.len() {
            break;
        }
        let margin = margins[at].as_f64().expect("a number");
        let label = &case["label"];
        assert!(
            margin <= MARGIN,
            "{label}: token {at} is {}, transformers has {} with a margin of {margin}",
            answer.tokens[same],
            tokens[at]
        );
        // Too close to call: go on from transformers' choice.
        close_calls += 1;
        context.truncate(ids(&case["prompt"]).len());
        at += 1;
        context.extend(&tokens[..at]);
    }
    close_calls
}

/// With bf16 weights and activations the logits are at most 1.2 times as far
/// from f32 as those of transformers' own bf16.
#[test]
fn bf16_logits_are_as_near_to_f32_as_those_of_transformers() {
    let mut runner = model::load(&model::options(Dtype::Bf16)).runner;
    let score = |tokens: &[u32]| runner.score(tokens).expect("the model computes");
    let error = relative_error(&["story", "essay", "code", "facts"], usize::MAX, score);
    let theirs = &model::reference_json("quality.json")["bf16_logits_relative_error"]["all"];
    let theirs = theirs.as_f64().expect("a number");
    assert!(error > 0.0 && error <= 1.2 * theirs, "relative error {error}, transformers' {theirs}");
}

/// How far logits after each of a text's first tokens, `[tokens, vocab_size]`, are from
/// those of transformers in f32, over several texts.
pub(crate) fn relative_error(
    texts: &[&str],
    max_tokens: usize,
    mut score: impl FnMut(&[u32]) -> Vec<f32>,
) -> f64 {
    let bytes = std::fs::read(model::reference("logits.safetensors")).expect("it is committed");
    let data = safetensors::SafeTensors::deserialize(&bytes).expect("it is whole");
    let ints = |name: &str| -> Vec<i32> {
        bytemuck::pod_collect_to_vec(data.tensor(name).expect("it is there").data())
    };
    let columns = ints("columns");
    let (mut difference, mut norm) = (0.0, 0.0);
    for name in texts {
        let tokens = ints(&format!("{name}.tokens")).into_iter().take(max_tokens);
        let tokens: Vec<u32> = tokens.map(i32::cast_unsigned).collect();
        let want = data.tensor(&format!("{name}.logits")).expect("it is there");
        let want: Vec<f32> = bytemuck::pod_collect_to_vec(want.data());
        let logits = score(&tokens);
        let vocab_size = logits.len() / tokens.len();
        for (row, want) in logits.chunks_exact(vocab_size).zip(want.chunks_exact(columns.len())) {
            for (&column, &want) in columns.iter().zip(want) {
                let got = f64::from(row[usize::try_from(column).expect("a column")]);
                difference += (got - f64::from(want)).powi(2);
                norm += f64::from(want).powi(2);
            }
        }
    }
    f64::sqrt(difference / norm)
}

fn int8(dtype: Dtype) -> LoadOptions {
    LoadOptions { quantization: Some(Quantization::Int8), ..model::options(dtype) }
}

/// exp of the mean negative log-likelihood of a fixed text.
fn perplexity(options: &LoadOptions) -> f64 {
    let quality = model::reference_json("quality.json");
    let tokens = ids(&quality["perplexity_tokens"]);
    let window =
        usize::try_from(quality["perplexity_window"].as_u64().expect("a size")).expect("small");
    perplexity_of(&mut model::load(options).runner, &tokens, window)
}

/// The same of any text, in windows that do not overlap.
pub(crate) fn perplexity_of(runner: &mut ModelRunner<Cpu>, tokens: &[u32], window: usize) -> f64 {
    let (mut total, mut count) = (0.0, 0);
    for window in tokens.chunks(window) {
        let logits = runner.score(window).expect("the model computes");
        let vocab_size = logits.len() / window.len();
        for (row, &next) in logits.chunks_exact(vocab_size).zip(&window[1..]) {
            let max = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
            let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
            total -= f64::from(row[next as usize]) - max - sum.ln();
            count += 1;
        }
    }
    (total / f64::from(count)).exp()
}

/// The perplexity of a fixed text is within 0.5 % of transformers'.
#[test]
fn perplexity_is_that_of_transformers() {
    let quality = model::reference_json("quality.json");
    for (dtype, name) in [(Dtype::Bf16, "perplexity_bf16"), (Dtype::F32, "perplexity_f32")] {
        let perplexity = perplexity(&model::options(dtype));
        let theirs = quality[name].as_f64().expect("a number");
        let ratio = perplexity / theirs;
        assert!((ratio - 1.0).abs() <= 0.005, "{name}: {perplexity}, transformers' {theirs}");
    }
}

/// With int8 weights, embedding and output included, the perplexity of a fixed
/// text is within 1 % of that in f32: 0.3 % and, with a bf16 cache, 0.5 % were
/// measured, and 5 % without rotation.
#[test]
fn perplexity_in_int8_is_that_in_f32() {
    let quality = model::reference_json("quality.json");
    let theirs = quality["perplexity_f32"].as_f64().expect("a number");
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let perplexity = perplexity(&int8(dtype));
        let ratio = perplexity / theirs;
        assert!((ratio - 1.0).abs() <= 0.01, "{dtype:?}: {perplexity}, transformers' {theirs}");
    }
}

/// With int8 weights the likeliest token after each prefix of the golden texts
/// is that of transformers in f32 at 95 % of the positions at least, and at all
/// where it is ahead by 0.75 (97 % and 0.36 were measured).
#[test]
fn greedy_tokens_in_int8_are_those_of_transformers_but_for_close_calls() {
    let golden = model::reference_json("golden.json");
    let mut runner = model::load(&int8(Dtype::Bf16)).runner;
    let (mut same, mut count) = (0, 0);
    for case in golden.as_array().expect("a list of cases") {
        let (mut context, tokens) = (ids(&case["prompt"]), ids(&case["tokens"]));
        let first = context.len() - 1;
        context.extend(&tokens);
        let logits = runner.score(&context).expect("the model computes");
        let rows = logits.chunks_exact(logits.len() / context.len()).skip(first);
        let margins = case["margins"].as_array().expect("a margin a token");
        for ((row, &token), margin) in rows.zip(&tokens).zip(margins) {
            count += 1;
            if row.iter().all(|&logit| logit <= row[token as usize]) {
                same += 1;
                continue;
            }
            let (label, margin) = (&case["label"], margin.as_f64().expect("a number"));
            assert!(margin < 0.75, "{label}: {token} is not the likeliest, with {margin}");
        }
    }
    assert_eq!(count, 1280);
    assert!(same * 100 >= count * 95, "{same} of {count}");
}

/// In pieces, every prefix of random tokens of the real vocabulary is what `tokenizers`
/// decodes it to.
#[test]
fn random_tokens_are_decoded_as_by_tokenizers() {
    let text = TextModel::load(model::dir(), &TextConfig::default()).expect("it loads");
    let file = model::dir().join("tokenizer.json");
    let reference = tokenizers::Tokenizer::from_file(file).expect("it loads");
    let size = u32::try_from(text.vocab_size()).expect("32 bits");
    // A third are single bytes and special tokens, which come first in this vocabulary.
    let token = prop_oneof![1 => 0..300_u32, 2 => 0..size];
    let sequences = proptest::collection::vec(token, 1..12);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(10_000));
    let in_pieces = runner.run(&(sequences, any::<bool>()), |(tokens, skip)| {
        let mut detokenizer = text.detokenizer(&[], skip);
        let mut shown = String::new();
        for (index, &token) in tokens.iter().enumerate() {
            detokenizer.push(token, &mut shown);
            let mut whole = shown.clone();
            detokenizer.clone().finish(&mut whole);
            let expected = reference.decode(&tokens[..=index], skip).expect("it decodes");
            prop_assert_eq!(&whole, &expected);
        }
        Ok(())
    });
    in_pieces.expect("every prefix is the same");
}

/// Token ids and rendered conversations are transformers'.
#[test]
fn texts_are_tokenized_and_templated_as_transformers_does() {
    let text = TextModel::load(model::dir(), &TextConfig::default()).expect("it loads");
    let cases = model::reference_json("tokens.json");
    for case in cases["encode"].as_array().expect("a list") {
        let (source, want) = (case["text"].as_str().expect("a text"), ids(&case["ids"]));
        let got = text.encode(source, true).expect("it encodes");
        assert_eq!(got, want, "token ids of {source:?}");
        let decoded = text.decode(&got, false).expect("it decodes");
        let mut pieces = String::new();
        let mut detokenizer = text.detokenizer(&[], false);
        got.iter().for_each(|&token| detokenizer.push(token, &mut pieces));
        detokenizer.finish(&mut pieces);
        assert_eq!(pieces, decoded, "the pieces of {source:?}");
    }
    for case in cases["chat"].as_array().expect("a list") {
        let messages = case["messages"].as_array().expect("messages");
        let got = text.apply_chat_template(messages, &Default::default()).expect("it renders");
        assert_eq!(Some(&*got), case["text"].as_str());
    }
}
