//! Stop strings that do not count yet, and those that name tokens that are not shown.

use proptest::prelude::*;
use sconce_text::StopStrings;

/// What is shown of parts, hidden ones in angle brackets, the stop that was found, and
/// after how many parts.
fn run(stops: &[&str], parts: &[&str], count_from: usize) -> (String, Option<usize>, usize) {
    let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
    let mut matcher = StopStrings::new(stops, false).expect("valid stops");
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        let may_end = index >= count_from;
        let found = match part.strip_prefix('#') {
            Some(hidden) => matcher.push_hidden(hidden, may_end, &mut out),
            None => matcher.push(part, may_end, &mut out),
        };
        if found.is_some() {
            return (out, found, index + 1);
        }
    }
    matcher.finish(&mut out);
    (out, None, parts.len())
}

#[test]
fn a_stop_string_does_not_count_before_its_time() {
    assert_eq!(run(&["A"], &["A", "B", "C"], 1), ("ABC".to_owned(), None, 3));
    assert_eq!(run(&["A"], &["A", "B", "A"], 1), ("AB".to_owned(), Some(0), 3));
    assert_eq!(run(&["aa"], &["aa", "a", "b"], 1), ("a".to_owned(), Some(0), 2));
    // One that began before and ends after counts.
    assert_eq!(run(&["BC"], &["A", "B", "C"], 2), ("A".to_owned(), Some(0), 3));
}

#[test]
fn a_stop_string_sees_the_hidden_tokens_that_it_names() {
    let end = "#<|end|>";
    assert_eq!(run(&["<|end|>"], &["a", end, "b"], 0), ("a".to_owned(), Some(0), 2));
    assert_eq!(run(&["<|end|>"], &["a", end, "b"], 2), ("ab".to_owned(), None, 3));
    assert_eq!(run(&["\n<|end|>x"], &["a\n", end, "x"], 0), ("a".to_owned(), Some(0), 3));
    assert_eq!(run(&["\n<|end|>x"], &["a\n", end, "y"], 0), ("a\ny".to_owned(), None, 3));
    assert_eq!(run(&["<|end|><|end|>"], &["a", end, end], 0), ("a".to_owned(), Some(0), 3));
    assert_eq!(run(&["<|end|>"], &["a<|e", "nd|>"], 0), ("a".to_owned(), Some(0), 2));
    // Other tokens that are not shown are no part of the text.
    assert_eq!(run(&["ab"], &["a", end, "b"], 0), (String::new(), Some(0), 3));
    assert_eq!(run(&["b", "<|end|>"], &["a", "#<s>", "b"], 0), ("a".to_owned(), Some(0), 3));
}

proptest! {
    /// Whatever is pushed before stop strings count, all of it comes out, and what
    /// ends afterwards is what a plain search finds.
    #[test]
    fn stops_count_from_a_place_on(
        before in "[abé]{0,8}", after in "[abé]{0,8}", stop in "[abé]{1,3}",
    ) {
        let text = format!("{before}{after}");
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = ends.filter(|&end| end > before.len()).find(|&end| text[..end].ends_with(&stop));
        let expected = end.map_or(text.as_str(), |end| &text[..end - stop.len()]);
        let (out, found, _) = run(&[&stop], &[&before, &after], 1);
        prop_assert_eq!(found.is_some(), end.is_some());
        prop_assert_eq!(out, expected);
    }
}
