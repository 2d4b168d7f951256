//! `/openapi.json`: what the server takes and answers, of the handlers' own types.

mod answers;
#[cfg(test)]
mod fields;
mod schemas;

use std::sync::OnceLock;

use axum::{
    body::Bytes,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use utoipa::{
    OpenApi, ToSchema,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use crate::{
    admin,
    anthropic::{answer::MessageEvent, error::MessageError, messages},
    capacity,
    error::ErrorBody,
    json::Body,
    live::{self, LiveEvent},
    openai::{
        batches, chat,
        chat_answer::ChatCompletionChunk,
        completions::{self, CompletionChunk},
        embeddings, files, models,
        responses::{self, ResponseEvent},
        scores,
    },
    state::AppState,
    tokenize,
};

/// The routes, in the order in which readers want them. `tests/server/openapi.rs` holds them
/// against the router's.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sconce",
        description = "OpenAI's and Anthropic's APIs over one model, shared fairly between \
                       tenants. A field that a request brings is used or refused by name; none \
                       is ignored.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "OpenAI", description = "Endpoints of OpenAI's API, with vLLM's fields"),
        (name = "Anthropic", description = "Endpoints of Anthropic's Messages API"),
        (name = "Tokens", description = "Texts to tokens and back"),
        (name = "Operation", description = "For those who run the server"),
        (name = "Administration", description = "For administrators' keys; where there are no \
            keys, for everybody but web pages of other sites"),
    ),
    security(("bearer" = []), ("x-api-key" = [])),
    paths(
        chat::create,
        completions::create,
        responses::create,
        responses::retrieve,
        responses::delete,
        embeddings::create,
        scores::score,
        scores::rerank,
        files::list,
        files::create,
        files::retrieve,
        files::delete,
        files::content,
        batches::list,
        batches::create,
        batches::retrieve,
        batches::cancel,
        models::list,
        models::retrieve,
        messages::create,
        messages::count_tokens,
        tokenize::tokenize,
        tokenize::detokenize,
        capacity::capacity,
        live::live,
        admin::health,
        admin::ping,
        admin::ready,
        admin::load,
        admin::version,
        admin::metrics,
        openapi,
        admin::reload,
        admin::tenants,
        admin::steps,
        admin::reset_prefix_cache,
    ),
    // Those of errors and events, which no handler's types lead to.
    components(schemas(
        Error,
        MessageError,
        ChatCompletionChunk,
        CompletionChunk,
        ResponseEvent,
        MessageEvent,
        LiveEvent,
    )),
)]
struct Api;

type Error = ErrorBody<'static>;

/// Fields of a body's types that the body refuses, so that the document is without them.
type Refused = (&'static str, Vec<&'static str>);

fn refused<B: Body + ToSchema>() -> Refused {
    let fields = B::UNSUPPORTED.iter().chain(B::SHARED);
    (type_name::<B>(), fields.map(|(name, _)| *name).collect())
}

/// A type's name in the document.
fn type_name<T: ToSchema>() -> &'static str {
    match T::name() {
        std::borrow::Cow::Borrowed(name) => name,
        std::borrow::Cow::Owned(_) => "",
    }
}

/// The bodies that flatten other types.
fn bodies() -> [Refused; 10] {
    [
        refused::<chat::ChatBody>(),
        refused::<completions::CompletionBody>(),
        refused::<responses::ResponsesBody>(),
        refused::<messages::MessagesBody>(),
        refused::<messages::Asked>(),
        refused::<embeddings::EmbeddingBody>(),
        refused::<tokenize::TokenizeBody>(),
        refused::<scores::ScoreBody>(),
        refused::<scores::RerankBody>(),
        refused::<batches::BatchBody>(),
    ]
}

/// The document of a server that a proxy shows below `root_path`.
pub(crate) fn document(root_path: &str) -> Value {
    let mut api = Api::openapi();
    let components = api.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key, where the server was started with keys or has tenants"))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let key =
        ApiKeyValue::with_description("x-api-key", "The same, as Anthropic's clients send it");
    components.add_security_scheme("x-api-key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    let mut document = serde_json::to_value(api).expect("its keys are strings");
    // The first version that knows what a stream's events are.
    document["openapi"] = "3.2.0".into();
    let url = root_path.trim_end_matches('/');
    document["servers"] = json!([{ "url": if url.is_empty() { "/" } else { url } }]);
    answers::complete(&mut document);
    schemas::complete(&mut document, &bodies());
    document
}

/// The OpenAPI document
#[utoipa::path(
    get, path = "/openapi.json", tag = "Operation", operation_id = "openapi", security(()),
    responses((status = 200, description = "This document", body = Value)),
)]
pub(crate) async fn openapi(State(state): State<AppState>) -> Response {
    let text = state.document.get_or_init(|| {
        let document = document(&state.config.root_path);
        serde_json::to_vec(&document).expect("its keys are strings").into()
    });
    ([(CONTENT_TYPE, "application/json")], Bytes::clone(text)).into_response()
}

/// The document as it is sent, made when it is first asked for.
pub(crate) type Text = OnceLock<Bytes>;
