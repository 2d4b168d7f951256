//! What a server prints when it is ready.

use std::process::Command;

use crate::process::{Server, sconce};

/// The command to try is one that a shell reads as it was meant, whatever the model is called.
#[test]
fn the_command_to_try_is_quoted() {
    for name in ["plain", "it's", r#"a "b" \c $HOME `id` é"#, "-x; exit 1", "two\nlines"] {
        let mut command = sconce();
        command.args(["serve", "null", "--port", "0", &format!("--served-model-name={name}")]);
        let server = Server::spawn(command);
        let (_, tried) = server.banner.split_once("Try:").expect("there is a command to try");
        // The last argument of curl.
        let script = format!("curl() {{ for last; do :; done; printf %s \"$last\"; }}\n{tried}");
        let output = Command::new("sh").arg("-c").arg(script).output().expect("a shell runs");
        assert!(output.status.success(), "{tried}");
        let body: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(body["model"], name, "{tried}");
    }
}
