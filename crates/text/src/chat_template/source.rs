//! Jinja2's source in the form that minijinja takes: what minijinja's parser
//! lacks or reads otherwise is rewritten when a template is loaded.

use std::ops::Range;

/// What `a % b` becomes, so that strings can be formatted: `a|__percent(b)`.
pub(super) const PERCENT: &str = "__percent";
/// What `for x in a` becomes, so that None is refused: `for x in (a)|__iterable`.
pub(super) const ITERABLE: &str = "__iterable";

/// What `a + b` becomes, so that its size is counted and markup escapes what is added to
/// it: `(a)|__add(b)`.
pub(super) const ADD: &str = "__add";
/// What `a ~ b` becomes, so that its size is counted: `(a)|__concat(b)`.
pub(super) const CONCAT: &str = "__concat";
/// What `a * b` becomes, so that its size is counted: `(a)|__multiply(b)`.
pub(super) const MULTIPLY: &str = "__multiply";
/// What `a[b:c:d]` becomes: `a.__slice(b, c, d)`.
pub(super) const SLICE: &str = "__slice";

/// Rewrites a template:
/// - line ends become `\n`;
/// - `{% generation %}` marks what the assistant wrote, for training; it becomes
///   a scope;
/// - `%`, `+`, `~`, `*`, `for` and slices go through [`PERCENT`], [`ADD`], [`CONCAT`],
///   [`MULTIPLY`], [`ITERABLE`] and [`SLICE`];
/// - a sign `+` goes;
/// - escapes in strings that minijinja reads otherwise become the character.
pub(super) fn rewrite(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let rest = &source[start..];
        let end = if rest.starts_with("{#") {
            rest.find("#}").map(|end| start + end + 2)
        } else if rest.starts_with("{{") {
            tokens(&source, start + 2, "}}").map(|(tokens, end)| {
                out.push_str(&source[at..start]);
                push_block(&source, start, &tokens, end, &mut out);
                at = end;
                end
            })
        } else if rest.starts_with("{%") {
            match tokens(&source, start + 2, "%}") {
                Some((tokens, end)) if word(&source, &tokens) == Some("raw") => {
                    end_of_raw(&source, end)
                }
                Some((tokens, end)) => {
                    out.push_str(&source[at..start]);
                    push_block(&source, start, &tokens, end, &mut out);
                    at = end;
                    Some(end)
                }
                None => None,
            }
        } else {
            Some(start + 1)
        };
        // What is not closed is left for minijinja to complain of.
        let Some(end) = end else { break };
        out.push_str(&source[at..end]);
        at = end;
    }
    out.push_str(&source[at..]);
    out
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Word,
    Number,
    String,
    Open,
    Close,
    Operator,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    at: Range<usize>,
}

const OPERATORS: [&str; 6] = ["**", "//", "==", "!=", "<=", ">="];

/// The tokens from `at` up to the closing delimiter, and where that ends.
fn tokens(source: &str, mut at: usize, close: &str) -> Option<(Vec<Token>, usize)> {
    // A sign beside a delimiter is whitespace control.
    if source[at..].starts_with(['-', '+']) {
        at += 1;
    }
    let mut tokens = Vec::new();
    let mut depth = 0_usize;
    loop {
        let rest = &source[at..];
        let first = rest.chars().next()?;
        let signed = rest.starts_with(['-', '+']) && rest[1..].starts_with(close);
        if depth == 0 && (signed || rest.starts_with(close)) {
            return Some((tokens, at + close.len() + usize::from(signed)));
        }
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let (kind, len) = match first {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '\'' | '"' => (Kind::String, string_len(rest, first)?),
            '(' | '[' | '{' => {
                depth += 1;
                (Kind::Open, 1)
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                (Kind::Close, 1)
            }
            c if c.is_ascii_digit() => {
                // A point belongs to the number only with a digit behind it.
                let point = |i: usize| {
                    rest[i..].starts_with('.')
                        && rest[i + 1..].starts_with(|c: char| c.is_ascii_digit())
                };
                let len = rest
                    .char_indices()
                    .find(|&(i, c)| !(word(c) || point(i)))
                    .map_or(rest.len(), |(i, _)| i);
                (Kind::Number, len)
            }
            c if word(c) => (Kind::Word, rest.find(|c| !word(c)).unwrap_or(rest.len())),
            c => {
                let double = OPERATORS.iter().any(|operator| rest.starts_with(operator));
                (Kind::Operator, if double { 2 } else { c.len_utf8() })
            }
        };
        tokens.push(Token { kind, at: at..at + len });
        at += len;
    }
}

fn string_len(rest: &str, quote: char) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// The word that is all there is in a block.
fn word<'a>(source: &'a str, tokens: &[Token]) -> Option<&'a str> {
    match tokens {
        [token] if token.kind == Kind::Word => Some(&source[token.at.clone()]),
        _ => None,
    }
}

fn end_of_raw(source: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let start = at + source[at..].find("{%")?;
        if let Some((tokens, end)) = tokens(source, start + 2, "%}")
            && word(source, &tokens) == Some("endraw")
        {
            return Some(end);
        }
        at = start + 2;
    }
}

/// Writes one `{{ … }}` or `{% … %}` anew.
fn push_block(source: &str, start: usize, tokens: &[Token], end: usize, out: &mut String) {
    let text = |token: &Token| &source[token.at.clone()];
    // What stands in for a token, and what comes behind it.
    let mut instead: Vec<Option<String>> = tokens
        .iter()
        .map(|token| (token.kind == Kind::String).then(|| string(text(token))).flatten())
        .collect();
    let mut before = vec![String::new(); tokens.len()];
    let mut behind = vec![String::new(); tokens.len()];
    match word(source, tokens) {
        Some("generation") => instead[0] = Some("with".to_owned()),
        Some("endgeneration") => instead[0] = Some("endwith".to_owned()),
        _ => {}
    }
    for (open, places, close) in slices(source, tokens) {
        instead[open] = Some(format!(".{SLICE}("));
        // A part that is left out is none.
        for (i, place) in places.iter().enumerate() {
            let before = if i == 0 { open } else { places[i - 1] };
            if before + 1 == *place {
                behind[before].push_str("none");
            }
            instead[*place] = Some(",".to_owned());
        }
        if places.last() == Some(&(close - 1)) {
            behind[close - 1].push_str("none");
        }
        instead[close] = Some(")".to_owned());
    }
    for (i, token) in tokens.iter().enumerate() {
        let after_operand = i > 0 && is_operand_end(text(&tokens[i - 1]), tokens[i - 1].kind);
        if text(token) == "+" && !after_operand {
            instead[i] = Some(String::new());
        }
    }
    for (operator, operand_end) in percents(source, tokens) {
        instead[operator] = Some(format!("|{PERCENT}("));
        behind[operand_end].push(')');
    }
    let statement = source[start..].starts_with("{%");
    for (operator, filter) in [("*", MULTIPLY), ("~", CONCAT), ("+", ADD)] {
        for (first, place, last) in binary(source, tokens, statement, operator) {
            before[first].push('(');
            instead[place] = Some(format!(")|{filter}("));
            behind[last].push(')');
        }
    }
    if statement && let Some(iterable) = iterable(source, tokens) {
        before[iterable.start].push('(');
        behind[iterable.end - 1].push_str(&format!(")|{ITERABLE}"));
    }
    let mut at = start;
    for (i, token) in tokens.iter().enumerate() {
        out.push_str(&source[at..token.at.start]);
        out.push_str(&before[i]);
        out.push_str(instead[i].as_deref().unwrap_or(text(token)));
        out.push_str(&behind[i]);
        at = token.at.end;
    }
    out.push_str(&source[at..end]);
}

/// The tokens of what a `for` walks over.
fn iterable(source: &str, tokens: &[Token]) -> Option<Range<usize>> {
    let text = |token: &Token| &source[token.at.clone()];
    if tokens.first().is_none_or(|token| text(token) != "for") {
        return None;
    }
    let mut depth = 0_i32;
    let mut start = None;
    for (i, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            Kind::Word if depth == 0 => match (text(token), start) {
                ("in", None) => start = Some(i + 1),
                ("if" | "recursive", Some(start)) => return (start < i).then_some(start..i),
                _ => {}
            },
            _ => {}
        }
    }
    start.filter(|&start| start < tokens.len()).map(|start| start..tokens.len())
}

/// The brackets of every slice, and the colons between them.
fn slices(source: &str, tokens: &[Token]) -> Vec<(usize, Vec<usize>, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match (token.kind, &source[token.at.clone()]) {
            (Kind::Open, _) => open.push((i, Vec::new())),
            (Kind::Operator, ":") => {
                if let Some((_, colons)) = open.last_mut() {
                    colons.push(i);
                }
            }
            (Kind::Close, closing) => {
                if let Some((start, colons)) = open.pop()
                    && closing == "]"
                    && !colons.is_empty()
                {
                    found.push((start, colons, i));
                }
            }
            _ => {}
        }
    }
    found
}

/// How tightly an operator binds; `None` for what binds tighter than `*`.
fn precedence(operator: &str) -> Option<u8> {
    match operator {
        "**" | "." | "|" => None,
        "*" | "/" | "//" | "%" => Some(3),
        "~" => Some(2),
        "+" | "-" => Some(1),
        _ => Some(0),
    }
}

/// Every place where an operator is binary, between the first token of its left side and
/// the last of its right side.
fn binary(
    source: &str,
    tokens: &[Token],
    statement: bool,
    operator: &str,
) -> Vec<(usize, usize, usize)> {
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    let own = precedence(operator).unwrap_or(u8::MAX);
    // At each level of brackets: where the left side began, and the last such operator.
    let mut levels: Vec<(usize, Option<usize>)> = vec![(usize::from(statement), None)];
    for (i, token) in tokens.iter().enumerate() {
        let text = &source[token.at.clone()];
        let after_operand = i > 0 && {
            let last = &tokens[i - 1];
            is_operand_end(&source[last.at.clone()], last.kind)
        };
        let level = levels.last_mut().expect("the outermost level stays");
        let (ends, begins) = match (token.kind, text) {
            (Kind::Open, _) => {
                levels.push((i + 1, None));
                continue;
            }
            (Kind::Close, _) => (true, false),
            // A sign, or the star before arguments.
            (Kind::Operator, "+" | "-" | "*") if !after_operand => (false, false),
            (Kind::Operator, text) => match precedence(text) {
                Some(other) if other < own => (true, true),
                Some(other) if other == own => (true, false),
                _ => (false, false),
            },
            (Kind::Word, word) if is_keyword(word) => (true, true),
            _ => (false, false),
        };
        if let Some(place) = level.1.take_if(|_| ends) {
            found.push((level.0, place, i - 1));
        }
        if begins {
            level.0 = i + 1;
        }
        if text == operator && after_operand {
            level.1 = Some(i);
        }
        if token.kind == Kind::Close && levels.len() > 1 {
            levels.pop();
        }
    }
    let end = tokens.len().saturating_sub(1);
    found.extend(levels.iter().filter_map(|(first, place)| Some((*first, (*place)?, end))));
    found
}

/// Every `%` whose left side a filter can take as it stands, and the last token
/// of its right side. After `*`, `/`, `//`, `**` and a sign a filter would take
/// too little; there only numbers make sense, and minijinja's own `%` does.
fn percents(source: &str, tokens: &[Token]) -> Vec<(usize, usize)> {
    let text = |token: &Token| &source[token.at.clone()];
    let mut found = Vec::new();
    let mut tight = vec![false];
    for (i, token) in tokens.iter().enumerate() {
        let after_operand = i > 0 && is_operand_end(text(&tokens[i - 1]), tokens[i - 1].kind);
        match token.kind {
            Kind::Open => tight.push(false),
            Kind::Close => tight.truncate(tight.len().saturating_sub(1).max(1)),
            _ => {}
        }
        let level = tight.last_mut().expect("the outermost level stays");
        match (token.kind, text(token)) {
            (Kind::Operator, "%") if !*level && after_operand => {
                found.extend(operand(source, tokens, i + 1).map(|end| (i, end)));
            }
            (Kind::Operator, "*" | "/" | "//" | "**") => *level = true,
            (Kind::Operator, "+" | "-") => *level = !after_operand,
            (Kind::Operator, "." | "|" | "%") => {}
            (Kind::Operator, _) => *level = false,
            (Kind::Word, word) if is_keyword(word) => *level = false,
            _ => {}
        }
    }
    found
}

fn is_keyword(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "else" | "elif" | "set" | "for")
}

fn is_operand_end(text: &str, kind: Kind) -> bool {
    match kind {
        Kind::Word => !is_keyword(text),
        Kind::Number | Kind::String | Kind::Close => true,
        Kind::Open | Kind::Operator => false,
    }
}

/// The last token of the operand that begins at `at`: a primary expression with
/// its attributes, subscripts, calls, filters and powers.
fn operand(source: &str, tokens: &[Token], mut at: usize) -> Option<usize> {
    let text = |at: usize| tokens.get(at).map(|token| &source[token.at.clone()]);
    let kind = |at: usize| tokens.get(at).map(|token| token.kind);
    let closed = |open: usize| {
        let mut depth = 0;
        tokens.iter().enumerate().skip(open).find_map(|(i, token)| {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(i)
        })
    };
    while matches!(text(at), Some("-" | "+")) {
        at += 1;
    }
    let mut last = match kind(at)? {
        Kind::Open => closed(at)?,
        Kind::String => {
            while kind(at + 1) == Some(Kind::String) {
                at += 1;
            }
            at
        }
        Kind::Word | Kind::Number => at,
        Kind::Close | Kind::Operator => return None,
    };
    loop {
        last = match text(last + 1) {
            Some("(" | "[") => closed(last + 1)?,
            Some("." | "|") if kind(last + 2).is_some() => last + 2,
            Some("**") => return operand(source, tokens, last + 2),
            _ => return Some(last),
        };
    }
}

/// A string literal with Python's escapes, if minijinja reads one otherwise.
fn string(literal: &str) -> Option<String> {
    if !literal.contains('\\') {
        return None;
    }
    let mut out = String::new();
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push('\u{7}'),
            Some('v') => out.push('\u{b}'),
            Some('/') => out.push_str("\\\\/"),
            Some('\n') => {}
            Some('U') => {
                let digits: String = chars.clone().take(8).collect();
                match u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32) {
                    Some(c) if digits.len() == 8 => {
                        if matches!(c, '\'' | '"' | '\\') {
                            out.push('\\');
                        }
                        out.push(c);
                        _ = chars.nth(7);
                    }
                    _ => out.push_str("\\U"),
                }
            }
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    Some(out)
}
