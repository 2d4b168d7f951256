//! `sconce chat`: a conversation in the terminal.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use sconce_bench::{Server, ServerArgs};
use serde_json::{Value, json};

/// Flags of `sconce chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to say; without it, a conversation, or all of standard input if that is no terminal
    prompt: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// A system message
    #[arg(long)]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 512)]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long)]
    temperature: Option<f32>,
}

/// Asks and shows answers as they come, until the input ends.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(converse(args))
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the command is for")]
async fn converse(args: &Args) -> anyhow::Result<()> {
    let (server, model) = args.server.connect().await?;
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    let interactive = args.prompt.is_empty() && std::io::stdin().is_terminal();
    if !interactive {
        let mut prompt = args.prompt.join(" ");
        if args.prompt.is_empty() {
            std::io::stdin().read_to_string(&mut prompt)?;
        }
        messages.push(json!({ "role": "user", "content": prompt.trim_end() }));
        answer(args, &server, &model, &messages).await?;
        return Ok(());
    }
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line.trim_end() }));
        match answer(args, &server, &model, &messages).await {
            Ok(text) => messages.push(json!({ "role": "assistant", "content": text })),
            // The conversation may go on: with a shorter line, or once the server is back.
            Err(error) => {
                messages.pop();
                eprintln!("error: {}", crate::describe(&error));
            }
        }
    }
}

/// Shows one answer; Ctrl-C ends it and keeps what has come.
#[expect(clippy::print_stdout, reason = "what the command is for")]
async fn answer(
    args: &Args,
    server: &Server,
    model: &str,
    messages: &[Value],
) -> anyhow::Result<String> {
    let mut body = json!({
        "model": model, "messages": messages, "stream": true, "max_tokens": args.max_tokens,
    });
    if let Some(temperature) = args.temperature {
        body["temperature"] = temperature.into();
    }
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut text = String::new();
    let mut events = tokio::select! {
        events = server.stream("/v1/chat/completions", body.to_string()) => events?,
        _ = &mut interrupted => return Ok(text),
    };
    loop {
        let event = tokio::select! {
            event = events.next_json() => event?,
            _ = &mut interrupted => None,
        };
        let Some(event) = event else { break };
        let piece = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        print!("{piece}");
        std::io::stdout().flush()?;
        text.push_str(piece);
    }
    println!();
    Ok(text)
}
