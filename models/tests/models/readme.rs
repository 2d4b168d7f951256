//! README.md's table of models is the registry's.

use std::{fmt::Write as _, path::Path};

const BEGIN: &str =
    "<!-- models: written by `README=write cargo test -p sconce-models readme` -->\n";
const END: &str = "<!-- end of models -->\n";

fn table() -> String {
    let mut table = "| `architectures` | models | as GGUF |\n|---|---|---|\n".to_owned();
    for family in sconce_models::families() {
        let gguf = family.gguf.map_or("no".to_owned(), |name| format!("`{name}`"));
        writeln!(table, "| `{}` | {} | {gguf} |", family.architecture, family.models).unwrap();
    }
    table
}

#[test]
fn readme_names_the_models_of_the_registry() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("README.md has a place for the table");
    let (found, after) = rest.split_once(END).expect("the table ends");
    let table = table();
    if std::env::var_os("README").is_some_and(|value| value == "write") {
        std::fs::write(&path, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(found, table, "README.md's table of models is out of date");
}
