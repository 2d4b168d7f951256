//! Embeddings of texts, and which of them are alike:
//! `cargo run --release --example embeddings [MODEL]`

#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use sconce::{EmbeddingOptions, Sconce};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1);
    let model = model.unwrap_or_else(|| "sentence-transformers/all-MiniLM-L6-v2".to_owned());
    let sconce = Sconce::builder(model).start()?;
    let texts = ["A cat sleeps on the sofa.", "The kitten naps.", "Shares fell on Monday."];
    let embeddings = sconce.blocking_embed(&texts, EmbeddingOptions::default())?;
    for (text, embedding) in texts.iter().zip(&embeddings) {
        // Of length 1: their product is their cosine.
        let cosine: f32 = embeddings[0].iter().zip(embedding).map(|(a, b)| a * b).sum();
        println!("{cosine:.2} {text}");
    }
    Ok(())
}
