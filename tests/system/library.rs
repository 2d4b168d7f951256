//! The library's own answers: parts, tools and types, of the null model and of a real one.

use std::sync::OnceLock;

use schemars::JsonSchema;
use sconce::{
    AnswerPart, Answered, ChatAsError, ChatRequest, Error, Finish, GrammarError, Message,
    SamplingParams, Sconce, Stage, Tool, ToolCall, ToolChoice, schema_of,
};
use serde::Deserialize;
use serde_json::json;

use crate::model;

/// The null model, which says the alphabet where a grammar lets it.
fn null() -> Sconce {
    Sconce::builder("null").start().expect("it needs nothing to start")
}

/// The real model, loaded once.
fn real() -> &'static Sconce {
    static REAL: OnceLock<Sconce> = OnceLock::new();
    REAL.get_or_init(|| {
        let model = model::dir().to_str().expect("UTF-8");
        Sconce::builder(model).max_model_len(1024).start().expect("it starts")
    })
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() }
}

fn ask(text: &str, max_tokens: u32) -> ChatRequest {
    ChatRequest::new([Message::user(text)], greedy(max_tokens))
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
struct Switch {
    is_on: bool,
    level: u8,
    kind: Kind,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Light,
    Heating,
}

fn switch() -> Tool {
    Tool::new("set_switch", "Sets a switch", schema_of::<Switch>())
}

fn whole(sconce: &Sconce, request: &ChatRequest) -> Answered {
    let answered = sconce.answer(request).expect("it is taken").blocking_whole();
    answered.expect("it ends")
}

#[test]
fn a_call_that_must_be_made_has_arguments_of_its_type() {
    let (null, mut request) = (null(), ask("Turn it on.", 200).tools([switch()]));
    // The null model would go on with calls.
    request.parallel_tool_calls = false;
    let named = ToolChoice::Named("set_switch".to_owned());
    for (choice, sconce) in [
        (ToolChoice::Required, &null),
        (named.clone(), &null),
        (ToolChoice::Required, real()),
        (named, real()),
    ] {
        let answered = whole(sconce, &request.clone().tool_choice(choice));
        assert_eq!(answered.finish, Finish::ToolCalls, "{answered:?}");
        assert!(answered.text.trim().is_empty(), "{answered:?}");
        for call in &answered.calls {
            assert_eq!(call.name, "set_switch");
            assert!(call.id.starts_with("call_"), "{call:?}");
            call.parse::<Switch>().expect("a grammar bounds it");
            let error = call.parse::<String>().expect_err("it is no string");
            assert!(error.to_string().contains("set_switch"), "{error}");
        }
        assert!(!answered.calls.is_empty());
        assert!(answered.metering.generated_tokens > 0 && answered.metering.prompt_tokens > 0);
    }
}

#[test]
fn a_conversation_goes_on_with_what_a_call_came_to() {
    let mut request = ask("Is the light on?", 60).tools([switch()]);
    request.tool_choice = ToolChoice::Required;
    request.parallel_tool_calls = false;
    request.messages.insert(0, Message::system("You control a house."));
    let first = whole(real(), &request);
    request.messages.push(first.to_message());
    for call in &first.calls {
        request.messages.push(Message::tool(&call.id, "It is on now."));
    }
    request.tool_choice = ToolChoice::Auto;
    let chosen = whole(real(), &request);
    assert!(chosen.metering.prompt_tokens > first.metering.prompt_tokens + 20, "{chosen:?}");
    request.tool_choice = ToolChoice::None;
    let said = whole(real(), &request);
    assert!(said.calls.is_empty() && !said.text.is_empty(), "{said:?}");
}

#[test]
fn parts_add_up_to_the_whole_on_a_thread_and_in_a_task() {
    let request = ask("Name three colours.", 24);
    let expected = whole(real(), &request);
    assert_eq!(expected.metering.generated_tokens, 24);
    assert_eq!(expected.finish, Finish::Length);
    let mut answer = real().answer(&request).expect("it is taken");
    let (mut text, mut pieces) = (String::new(), 0);
    while let Some(part) = answer.blocking_next() {
        match part.expect("it ends") {
            AnswerPart::Text(piece) => text += &piece,
            other => panic!("{other:?}"),
        }
        pieces += 1;
    }
    assert!(pieces > 1, "it is streamed");
    assert_eq!((text.as_str(), answer.finish()), (expected.text.as_str(), Some(Finish::Length)));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asked = request.clone();
    // Spawned: the future goes from thread to thread.
    let task = runtime.spawn(async move {
        let answer = real().answer(&asked)?;
        Ok::<_, Error>(answer.whole().await?)
    });
    let awaited = runtime.block_on(task).expect("no panic").expect("it ends");
    assert_eq!(awaited.text, expected.text);
}

#[test]
fn a_stop_text_ends_an_answer() {
    let mut request = ask("Hello", 30);
    request.stop = vec!["fg".to_owned()];
    let answered = whole(&null(), &request);
    assert_eq!((answered.text.as_str(), answered.finish), ("abcde", Finish::Stop));
    assert_eq!(answered.metering.generated_tokens, 7);
}

#[test]
fn an_answer_is_of_a_type_or_an_error_says_why_not() {
    let request = ask("Describe a switch as JSON.", 200);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for sconce in [&null(), real()] {
        let blocking: Switch = sconce.blocking_chat_as(&request).expect("a grammar bounds it");
        let awaited: Switch = runtime.block_on(sconce.chat_as(&request)).expect("the same");
        assert_eq!(blocking, awaited);
    }
    // The null model would never end a string.
    let text = null().blocking_chat_as::<String>(&ask("Hello", 8)).expect_err("it is cut");
    let ChatAsError::Cut { text, max_tokens: 8, .. } = &text else { panic!("{text}") };
    assert_eq!(text, "\"bcdefgh");
    // A number may have been cut, whatever it looks like.
    let cut = null().blocking_chat_as::<u64>(&ask("Hello", 1)).expect_err("it may be cut");
    assert!(matches!(cut, ChatAsError::Cut { .. }), "{cut}");
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Odd {
    #[schemars(extend("not" = { "const": 1 }))]
    #[expect(dead_code, reason = "it is never made")]
    number: u8,
}

#[test]
fn what_cannot_be_held_to_is_refused_before_anything_is_generated() {
    let null = null();
    let refused = null.blocking_chat_as::<Odd>(&ask("Hello", 8)).expect_err("it cannot be had");
    let ChatAsError::Schema { type_name, reason } = &refused else { panic!("{refused}") };
    assert!(type_name.ends_with("Odd"));
    assert!(
        matches!(reason, GrammarError::At { pointer, .. } if pointer == "/properties/number/not")
    );
    assert!(refused.to_string().contains("\"not\" is not supported"), "{refused}");
    let refused = |request: &ChatRequest| match null.answer(request).err().expect("refused") {
        Error::Invalid { field, message } => (field.unwrap_or_default(), message),
        other => panic!("{other:?}"),
    };
    let call = ToolCall { id: "1".into(), name: "f".into(), arguments: "[1".into() };
    let called = Message::Assistant { text: String::new(), reasoning: None, calls: vec![call] };
    let mut twice = ask("Hello", 8);
    twice.tools = vec![switch(), switch()];
    let named = ask("Hello", 8).tools([switch()]).tool_choice(ToolChoice::Named("f".into()));
    let strict = Tool::new("f", "", json!({ "not": {} })).strict();
    for (request, field, says) in [
        (ChatRequest::new([], greedy(8)), "messages", "at least one message"),
        (ChatRequest::new([called], greedy(8)), "messages[0].calls[0].arguments", "no JSON"),
        (twice, "tools[1]", "two tools"),
        (named, "tool_choice", "set_switch"),
        (ask("Hello", 8).tools([strict]), "tools", "\"not\" is not supported"),
    ] {
        let (at, message) = refused(&request);
        assert_eq!(at, field, "{message}");
        assert!(message.contains(says), "{message}");
    }
    let hot = SamplingParams { temperature: -1.0, ..greedy(8) };
    let refused = null.answer(&ChatRequest::new([Message::user("Hello")], hot)).err();
    assert!(matches!(refused, Some(Error::Submit(_))), "{refused:?}");
    let refused = null.blocking_embed(["a"], sconce::EmbeddingOptions::default()).err();
    assert!(matches!(refused, Some(Error::MakesNoEmbeddings(_))), "{refused:?}");
    assert_eq!(null.engine().unfinished(), 0);
    let generated = null.engine().metrics().generation_tokens.get();
    assert_eq!(generated, 0);
}

#[test]
fn a_start_tells_a_callback_how_far_it_has_come() {
    let (told, stages) = std::sync::mpsc::channel();
    let model = model::dir().to_str().expect("UTF-8");
    let callback = move |stage, done, total| {
        let _ = told.send((stage, done, total));
    };
    let sconce = Sconce::builder(model).max_model_len(64).start_with_callback(callback);
    drop(sconce.expect("it starts"));
    let last = stages.try_iter().filter(|(stage, ..)| *stage == Stage::Tensors).last();
    let (_, done, total) = last.expect("tensors are counted");
    assert!(done == total && total > 100, "{done} of {total}");
}
