//! Starts an engine in this process and streams one answer:
//! `cargo run --release --example complete [MODEL]`

use std::io::Write as _;

use sconce::{SamplingParams, Sconce};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let sconce = Sconce::builder(model).max_model_len(2048).start()?;
    let params = SamplingParams { max_tokens: 64, temperature: 0.0, ..Default::default() };
    let mut answer = sconce.chat(&[("user", "What is the capital of France?")], params)?;
    let mut out = std::io::stdout();
    while let Some(text) = answer.blocking_next() {
        write!(out, "{}", text?)?;
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}
