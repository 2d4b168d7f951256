//! `sconce chat`: a conversation in the terminal.

mod conversation;

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustyline::{DefaultEditor, error::ReadlineError};
use sconce_bench::{Server, ServerArgs};
use serde_json::{Value, json};

use self::conversation::{Conversation, HELP, Line};

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
    /// A file that keeps the lines of earlier conversations, for the arrow keys
    #[arg(long, value_name = "FILE", env = "SCONCE_CHAT_HISTORY")]
    history: Option<PathBuf>,
}

/// Asks and shows answers as they come, until the input ends.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(converse(args))
}

async fn converse(args: &Args) -> anyhow::Result<()> {
    let (server, model) = args.server.connect().await?;
    let mut conversation = Conversation::new(args.system.clone());
    if args.prompt.is_empty() && std::io::stdin().is_terminal() {
        return interact(args, &server, &model, conversation).await;
    }
    let mut prompt = args.prompt.join(" ");
    if args.prompt.is_empty() {
        std::io::stdin().read_to_string(&mut prompt)?;
    }
    conversation.say(prompt.trim_end());
    answer(args, &server, &model, &conversation.messages()).await?;
    Ok(())
}

/// Reads lines, with editing and a history, until the input ends.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the command is for")]
async fn interact(
    args: &Args,
    server: &Server,
    model: &str,
    mut conversation: Conversation,
) -> anyhow::Result<()> {
    println!("{model}; /help lists commands");
    let mut editor = DefaultEditor::new()?;
    if let Some(file) = &args.history {
        // There is none before the first conversation.
        let _ = editor.load_history(file);
    }
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                println!("Ctrl-D or /exit ends the conversation");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let read = Line::read(&line);
        if read != Line::Nothing {
            editor.add_history_entry(line.as_str())?;
            if let Some(file) = &args.history {
                editor.save_history(file)?;
            }
        }
        match read {
            Line::Nothing => {}
            Line::Exit => return Ok(()),
            Line::Help => println!("{HELP}"),
            Line::Unknown(line) => eprintln!("{line:?} is no command; /help lists them"),
            Line::Clear => conversation.clear(),
            Line::System("") => {
                println!("{}", conversation.system.as_deref().unwrap_or("there is none"));
            }
            Line::System(text) => conversation.system = Some(text.to_owned()),
            Line::Save("") => eprintln!("/save needs a file"),
            Line::Save(file) => match conversation.save(Path::new(file)) {
                Ok(()) => println!("saved to {file}"),
                Err(error) => eprintln!("error: {}", crate::describe(&error)),
            },
            Line::Say(text) => {
                conversation.say(text);
                match answer(args, server, model, &conversation.messages()).await {
                    Ok(text) => conversation.answered(&text),
                    // It may go on: with a shorter line, or once the server is back.
                    Err(error) => {
                        conversation.take_back();
                        eprintln!("error: {}", crate::describe(&error));
                    }
                }
            }
        }
    }
}

/// A terminal's dim letters, and back.
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Shows one answer, on a terminal with the model's thoughts, which are dimmed and no part of
/// it; Ctrl-C ends it and keeps what has come.
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
    let shows_thoughts = std::io::stdout().is_terminal();
    let mut is_thinking = false;
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
        let delta = &event["choices"][0]["delta"];
        let thought = delta["reasoning"].as_str().filter(|_| shows_thoughts).unwrap_or_default();
        if !thought.is_empty() {
            print!("{DIM}{thought}{PLAIN}");
            is_thinking = true;
        }
        let piece = delta["content"].as_str().unwrap_or_default();
        if is_thinking && !piece.is_empty() {
            is_thinking = false;
            println!();
        }
        print!("{piece}");
        std::io::stdout().flush()?;
        text.push_str(piece);
    }
    println!();
    Ok(text)
}
