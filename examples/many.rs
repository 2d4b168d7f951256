//! Completes many prompts at once, in their order and as they finish:
//! `cargo run --release --example many [MODEL]`

#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use futures::StreamExt as _;
use sconce::{SamplingParams, Sconce};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let sconce = Sconce::builder(model).max_model_len(2048).max_num_seqs(8).start()?;
    let countries = ["France", "Italy", "Spain", "Germany", "Japan", "Egypt"];
    let prompts = countries.map(|country| format!("The capital of {country} is"));
    let params = SamplingParams { max_tokens: 4, temperature: 0.0, ..Default::default() };
    for completion in sconce.generate(&prompts, params.clone()) {
        let completion = completion?;
        println!("{}{}", prompts[completion.index], completion.text);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut finished = std::pin::pin!(sconce.generate_stream(&prompts, params));
        while let Some(completion) = finished.next().await {
            println!("finished: {}", completion?.index);
        }
        Ok(())
    })
}
