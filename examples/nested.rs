//! The HTTP API within a server of one's own, below `/llm`, beside other routes:
//! `cargo run --release --example nested [MODEL]`

#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use axum::{Router, routing::get};
use sconce::{Sconce, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let start = move || Sconce::builder(model).max_model_len(2048).start();
    let sconce = tokio::task::spawn_blocking(start).await??;
    let name = sconce.summary().model_name.clone();
    let config = ServerConfig { served_model_names: vec![name], ..ServerConfig::default() };
    let api = sconce::router(sconce.engine().clone(), sconce.text().clone(), config);
    let app = Router::new().route("/", get(|| async { "hello" })).nest("/llm", api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}/llm/v1", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
