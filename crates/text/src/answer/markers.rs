//! Finding markers in text that comes character by character.

/// Finds the markers of a set by Knuth, Morris and Pratt: a character costs the
/// same however the markers repeat themselves. Only what may begin a marker is held.
pub(super) struct Markers {
    markers: Vec<Marker>,
    /// Text that the longest beginning of a marker covers.
    held: String,
}

struct Marker {
    text: &'static str,
    chars: Vec<char>,
    /// For each prefix, its length in bytes, and the length in characters of its longest proper border.
    prefixes: Vec<(usize, usize)>,
    /// Characters of it that the text ends with.
    matched: usize,
}

impl Markers {
    /// A scanner for markers, none of which is empty.
    pub(super) fn new(markers: impl IntoIterator<Item = &'static str>) -> Self {
        Self { markers: markers.into_iter().map(Marker::new).collect(), held: String::new() }
    }

    /// Takes a character and appends to `out` what is not part of a marker. Returns
    /// the index of a marker that ends here: the longest, should there be several.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Option<usize> {
        self.held.push(c);
        let (mut found, mut keep) = (None, 0);
        for (index, marker) in self.markers.iter_mut().enumerate() {
            marker.advance(c);
            let bytes = marker.matched_bytes();
            if marker.matched == marker.chars.len() && found.is_none_or(|(_, other)| bytes > other)
            {
                found = Some((index, bytes));
            }
            keep = keep.max(bytes);
        }
        let decided = self.held.len() - found.map_or(keep, |(_, bytes)| bytes);
        out.push_str(&self.held[..decided]);
        if found.is_some() {
            self.held.clear();
            self.markers.iter_mut().for_each(|marker| marker.matched = 0);
        } else {
            self.held.drain(..decided);
        }
        found.map(|(index, _)| index)
    }

    /// Appends what is held: the text has ended.
    pub(super) fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.markers.iter_mut().for_each(|marker| marker.matched = 0);
    }

    /// A marker of the set.
    pub(super) fn text(&self, index: usize) -> &'static str {
        self.markers[index].text
    }
}

impl Marker {
    fn new(text: &'static str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut prefixes = vec![(0, 0)];
        let mut border = 0;
        for (at, c) in chars.iter().enumerate() {
            if at > 0 {
                while border > 0 && *c != chars[border] {
                    border = prefixes[border].1;
                }
                border += usize::from(*c == chars[border]);
            }
            prefixes.push((prefixes[at].0 + c.len_utf8(), border));
        }
        Self { text, chars, prefixes, matched: 0 }
    }

    fn advance(&mut self, c: char) {
        while self.matched > 0 && self.chars[self.matched] != c {
            self.matched = self.prefixes[self.matched].1;
        }
        self.matched += usize::from(self.chars[self.matched] == c);
    }

    fn matched_bytes(&self) -> usize {
        self.prefixes[self.matched].0
    }
}
