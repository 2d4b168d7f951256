//! The book: it builds without a warning, and its commands work.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    process::{Server, sconce},
    python,
};

/// What the book calls a model that is fetched or lies somewhere, served here by the null model.
const MODELS: [&str; 4] =
    ["qwen3-0.6b", "meta-llama/Llama-3.2-1B-Instruct", "./my-model", "./model.Q8_0.gguf"];

/// The one that can be fetched without the hub.
const FETCHED: &str = "smollm2-135m-instruct";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn it_builds_without_a_warning() {
    let python = python::with("book/requirements.txt");
    let site = tempfile::tempdir().expect("a folder");
    let mut build = Command::new(python);
    build.args(["-m", "mkdocs", "build", "--strict", "--site-dir"]).arg(site.path());
    let output = build.current_dir(root()).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(site.path().join("operations.html")).expect("a page");
    assert!(page.contains("--shutdown-timeout"), "{page}");
    assert!(site.path().join("repository/ARCHITECTURE.md.txt").is_file(), "a file outside docs/");
}

/// What a fenced block holds, of a page, in order: its language and its text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// A block's commands: lines that go on are one, and what follows ` # ` is a comment.
fn commands(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let command = |line: &str| line.split(" # ").next().unwrap_or_default().trim().to_owned();
    joined.lines().map(command).filter(|command| !command.is_empty()).collect()
}

/// Where a page's commands are run.
struct Shell {
    folder: tempfile::TempDir,
    server: Option<Server>,
}

impl Shell {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        symlink(env!("CARGO_BIN_EXE_sconce"), folder.path().join("sconce")).expect("a link");
        Self { folder, server: None }
    }

    /// Runs one command; what it may be is written down here, so that no other gets into the book.
    fn run(&mut self, command: &str) {
        let built = command.strip_prefix("cargo run --release ");
        let command = match built.and_then(|rest| rest.split_once("-- ")) {
            Some((flags, args)) => {
                assert!(matches!(flags, "" | "--features cuda "), "{command}");
                format!("sconce {args}")
            }
            None => command.to_owned(),
        };
        if let Some(example) = built.and_then(|rest| rest.strip_prefix("--example ")) {
            let source = root().join(format!("examples/{example}.rs"));
            return assert!(source.is_file(), "tests/system/examples.rs runs it: {command}");
        }
        let program = command.split(' ').next().expect("a program");
        match program {
            "sconce" if command.starts_with("sconce serve") => self.serve(&command),
            "sconce" if command.starts_with("sconce pull ") => {
                let fetch = MODELS.iter().fold(command, |text, model| text.replace(model, FETCHED));
                self.shell(&fetch);
            }
            "sconce"
                if command.starts_with("sconce chat") || command.starts_with("sconce bench") =>
            {
                let address = self.address();
                self.shell(&format!("{command} --base-url http://{address}"));
            }
            "sconce" => self.shell(&command),
            "curl" => {
                let address = self.address();
                let asked = command.replace("127.0.0.1:8000", &address);
                assert!(asked.contains(&address), "which server? {command}");
                self.shell(&asked.replacen("curl ", "curl --fail --silent --show-error ", 1));
            }
            script => {
                let file = root().join(script);
                let mode = std::fs::metadata(&file).unwrap_or_else(|error| {
                    panic!("no test knows how to run {command:?}: {error}");
                });
                assert!(mode.permissions().mode() & 0o111 != 0, "{script} cannot be run");
            }
        }
    }

    /// Starts the server that a command starts, but for its model and its port.
    fn serve(&mut self, command: &str) {
        let mut args: Vec<_> = command.split(' ').skip(2).filter(|arg| !arg.is_empty()).collect();
        if args.first().is_some_and(|first| !first.starts_with("--")) {
            let model = args.remove(0);
            assert!(MODELS.contains(&model), "an unknown model: {command}");
        }
        if let Some(at) = args.iter().position(|arg| *arg == "--port") {
            args.drain(at..at + 2);
        }
        self.server = None;
        let mut server = sconce();
        server.args(["serve", "null", "--port", "0", "--served-model-name", FETCHED]).args(args);
        server.current_dir(self.folder.path());
        self.server = Some(Server::spawn(server));
    }

    /// The address of the server that the page has started; of any, where it has started none.
    fn address(&mut self) -> String {
        if self.server.is_none() {
            self.serve("sconce serve");
        }
        let address = &self.server.as_ref().expect("it was started").address;
        address.replace("0.0.0.0", "127.0.0.1")
    }

    fn shell(&self, command: &str) {
        self.check(Command::new("sh").args(["-c", command]), command);
    }

    fn python(&mut self, text: &str) {
        let address = self.address();
        let text = text.replace("127.0.0.1:8000", &address);
        let python = python::with("openai/requirements.txt");
        self.check(Command::new(python).args(["-c", &text]), &text);
    }

    fn check(&self, command: &mut Command, shown: &str) {
        let known: Vec<_> = sconce()
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.expect("a value").to_owned()))
            .collect();
        let path = std::env::var("PATH").expect("there is one");
        let path = format!("{}:{path}", self.folder.path().display());
        let output = command.current_dir(self.folder.path()).envs(known).env("PATH", path).output();
        let output = output.expect("it can be run");
        let (said, failed) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{shown}\n{said}\n{failed}");
        assert!(!said.is_empty() || !failed.is_empty(), "it says nothing: {shown}");
    }
}

#[test]
fn its_commands_work() {
    let mut pages = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).expect("there are pages");
    let docs = docs.map(|entry| entry.expect("it can be listed").path());
    pages.extend(docs.filter(|path: &PathBuf| path.extension().is_some_and(|ext| ext == "md")));
    let mut run = 0;
    for page in pages {
        let mut shell = Shell::new();
        let text = std::fs::read_to_string(&page).expect("it can be read");
        for (language, block) in blocks(&text) {
            match &*language {
                "sh" => {
                    for command in commands(&block) {
                        shell.run(&command);
                        run += 1;
                    }
                }
                "python" => shell.python(&block),
                // The library's are its own documentation's, the file's the tenants' tests'.
                "rust" | "toml" | "text" => {}
                other => panic!("{}: no test runs a block of {other:?}", page.display()),
            }
        }
    }
    assert!(run > 25, "{run} commands");
}
