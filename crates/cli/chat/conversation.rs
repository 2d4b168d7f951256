//! What is said in a conversation, and the lines that are commands.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// What `/help` prints.
pub(super) const HELP: &str = "\
/system TEXT   set the system message; without TEXT, show it
/save FILE     write the conversation to FILE, as the JSON list `messages`
/clear         begin anew; the system message stays
/help          show this
/exit          end; so does Ctrl-D
Ctrl-C stops an answer. A line that begins with two slashes is said with one.";

/// A line that was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Nothing,
    Say(&'a str),
    /// Without text, it is asked for.
    System(&'a str),
    Save(&'a str),
    Clear,
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    pub(super) fn read(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = line.strip_prefix('/') else { return Self::Say(line) };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("system", text) => Self::System(text),
            ("save", file) => Self::Save(file),
            ("clear", "") => Self::Clear,
            ("help" | "?", "") => Self::Help,
            ("exit" | "quit" | "bye", "") => Self::Exit,
            _ => Self::Unknown(line),
        }
    }
}

/// A conversation so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) system: Option<String>,
    turns: Vec<Value>,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.turns.push(json!({ "role": "user", "content": text }));
    }

    pub(super) fn answered(&mut self, text: &str) {
        self.turns.push(json!({ "role": "assistant", "content": text }));
    }

    /// Takes back what was said last: it has no answer.
    pub(super) fn take_back(&mut self) {
        self.turns.pop();
    }

    pub(super) fn clear(&mut self) {
        self.turns.clear();
    }

    /// The API's `messages`.
    pub(super) fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Writes `messages` to a file, which is replaced.
    pub(super) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.messages())? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_said_unless_they_are_commands() {
        for (line, read) in [
            ("  \n", Line::Nothing),
            (" hi there\n", Line::Say("hi there")),
            ("a/b", Line::Say("a/b")),
            ("//etc/hosts", Line::Say("/etc/hosts")),
            ("/system  Be brief. ", Line::System("Be brief.")),
            ("/system", Line::System("")),
            ("/save a b.json", Line::Save("a b.json")),
            ("/clear", Line::Clear),
            ("/clear all", Line::Unknown("/clear all")),
            ("/?", Line::Help),
            ("/bye", Line::Exit),
            ("/etc/hosts", Line::Unknown("/etc/hosts")),
        ] {
            assert_eq!(Line::read(line), read, "{line:?}");
        }
    }

    #[test]
    fn what_is_saved_is_what_was_said() {
        let mut conversation = Conversation::new(Some("s".to_owned()));
        conversation.say("dropped");
        conversation.take_back();
        conversation.say("a");
        conversation.answered("b");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("saved.json");
        conversation.save(&file).expect("it can be written");
        let saved: Value =
            serde_json::from_str(&std::fs::read_to_string(&file).expect("it is there"))
                .expect("JSON");
        let expected = json!([
            { "role": "system", "content": "s" },
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": "b" },
        ]);
        assert_eq!(saved, expected);
        conversation.clear();
        conversation.system = None;
        assert!(conversation.messages().is_empty());
        let error = conversation.save(folder.path()).expect_err("it is a folder");
        assert!(error.to_string().contains("cannot write"), "{error}");
    }
}
