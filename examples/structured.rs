//! An answer that is a value of a type:
//! `cargo run --release --example structured [MODEL]`

#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use schemars::JsonSchema;
use sconce::{ChatAsError, ChatRequest, Message, SamplingParams, Sconce};
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
struct City {
    #[schemars(length(max = 40))]
    name: String,
    continent: Continent,
    is_capital: bool,
    /// In millions.
    population: Option<u8>,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum Continent {
    Africa,
    America,
    Asia,
    Australia,
    Europe,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let sconce = Sconce::builder(model).max_model_len(2048).start()?;
    let question = Message::user("Describe Paris as JSON: its name, continent and population.");
    let params = SamplingParams { max_tokens: 100, temperature: 0.0, ..Default::default() };
    let mut request = ChatRequest::new([question], params);
    let city: City = sconce.blocking_chat_as(&request)?;
    let City { name, continent, is_capital, population } = city;
    println!("{name} in {continent:?}, {population:?} million, a capital: {is_capital}");
    // Without room for an answer the error has what there is of it.
    request.params.max_tokens = 4;
    match sconce.blocking_chat_as::<City>(&request) {
        Err(ChatAsError::Cut { text, .. }) => println!("cut: {text}"),
        other => println!("{other:?}"),
    }
    Ok(())
}
