//! A model calls a tool, the program answers, and the model goes on:
//! `cargo run --release --example tools [MODEL]`

#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use schemars::JsonSchema;
use sconce::{ChatRequest, Message, SamplingParams, Sconce, Tool, ToolChoice, schema_of};
use serde::Deserialize;

/// What the tool takes.
#[derive(Deserialize, JsonSchema)]
struct Place {
    /// The city's name, such as Paris.
    #[schemars(length(max = 40))]
    city: String,
}

fn weather(place: &Place) -> String {
    format!("It is sunny in {}, and 21 °C.", place.city)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let sconce = Sconce::builder(model).max_model_len(2048).start()?;
    let tool = Tool::new("weather", "The weather in a city now", schema_of::<Place>());
    let params = SamplingParams { max_tokens: 100, temperature: 0.0, ..Default::default() };
    let question = Message::user("What is the weather in Paris?");
    // A model as small as the default one calls what it is told to; larger ones choose (`Auto`).
    let mut request =
        ChatRequest::new([question], params).tools([tool]).tool_choice(ToolChoice::Required);
    request.parallel_tool_calls = false;
    loop {
        let answered = sconce.answer(&request)?.blocking_whole()?;
        request.messages.push(answered.to_message());
        if answered.calls.is_empty() {
            println!("{}", answered.text);
            return Ok(());
        }
        for call in &answered.calls {
            // What is wrong with a call is told to the model, which may do better.
            let result =
                call.parse().map_or_else(|error| error.to_string(), |place| weather(&place));
            println!("{}({}): {result}", call.name, call.arguments);
            request.messages.push(Message::tool(&call.id, result));
        }
        request.tool_choice = ToolChoice::None;
    }
}
