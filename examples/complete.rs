//! Starts an engine in this process and streams one answer:
//! `cargo run --release --example complete`

use std::io::Write as _;

use sconce::{Options, SamplingParams, Sconce};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sconce = Sconce::start(&Options::new("smollm2-135m-instruct"), &())?;
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
