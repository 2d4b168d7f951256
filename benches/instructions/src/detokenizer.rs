//! Text from tokens as they come.

use std::hint::black_box;

use crate::{
    counted,
    text::{Sample, byte_level as byte_level_sample, sentence_piece},
};

/// 1,200 tokens that are bytes: one look-up each.
pub(crate) fn byte_level() {
    stream(&byte_level_sample(), 100);
}

/// 180 tokens of a vocabulary that is decoded in windows.
pub(crate) fn window() {
    stream(&sentence_piece(), 20);
}

/// Streams the sample's tokens so many times over, into a string for each
/// token, as the server does.
fn stream(sample: &Sample, times: usize) {
    let mut detokenizer = sample.model.detokenizer(&sample.tokens, true);
    let mut len = 0;
    counted(|| {
        for _ in 0..times {
            for &token in &sample.tokens {
                let mut text = String::new();
                detokenizer.push(token, &mut text);
                len += black_box(text).len();
            }
        }
    });
    let whole = sample.model.decode(&sample.tokens, true).expect("the tokens are known");
    assert!(len >= (whole.len() - 1) * times, "all the text came");
}
