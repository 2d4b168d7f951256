//! `/v1/score` and `/v1/rerank`: how alike texts are, by the cosine of their embeddings.

use std::sync::Arc;

use axum::{Json, extract::State};
use sconce_types::TokenId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    embeddings::{Usage, info},
    models::List,
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        encoder::{self, Cut},
        inputs::Inputs,
        settings::OneOrMany,
    },
    json::{Body, JsonBody},
    state::{AppState, unix_seconds},
    word::word,
};

word!(ScoreObject = "score");

const UNSUPPORTED: &[(&str, Option<&str>)] = &[
    ("activation", None),
    ("instruction", None),
    ("mm_processor_kwargs", None),
    ("priority", Some("0")),
    ("softmax_normalize", None),
];

/// A request for scores: of one text with each of several, or of pairs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreBody {
    model: Option<String>,
    /// One text, or as many as `text_2` has.
    text_1: OneOrMany,
    /// What it is compared with.
    text_2: OneOrMany,
    /// Cut texts after so many tokens; -1: after as many as the model takes.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// The client's own note of who asks; only logged.
    user: Option<String>,
}

impl Body for ScoreBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = UNSUPPORTED;
}

/// A request to put documents in the order of their likeness to a query, as Cohere's and
/// Jina's.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RerankBody {
    model: Option<String>,
    query: String,
    documents: Vec<String>,
    /// The documents that are given back; 0 or none: all.
    top_n: Option<usize>,
    /// Whether with their texts; so it is if nothing is said.
    return_documents: Option<bool>,
    /// Cut texts after so many tokens; -1: after as many as the model takes.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// The client's own note of who asks; only logged.
    user: Option<String>,
}

impl Body for RerankBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = UNSUPPORTED;
}

/// Texts that are compared: the first, or its counterpart, with each of the others.
struct Compared {
    caller: TenantAuth,
    model: Option<String>,
    first: Vec<Vec<TokenId>>,
    second: Vec<Vec<TokenId>>,
}

impl Compared {
    fn read(
        state: &AppState,
        caller: TenantAuth,
        model: Option<String>,
        [first, second]: [(&str, Vec<String>); 2],
        truncate_prompt_tokens: Option<i64>,
    ) -> Result<Self, ApiError> {
        super::check_model(state, &caller, model.as_deref())?;
        let cut = Cut::new(info(state)?, truncate_prompt_tokens, None)?;
        let encode = |(field, texts): (&str, Vec<String>)| {
            encoder::encode(&state.generator, Inputs::Texts(texts), cut, field)
        };
        let (first, second) = (encode(first)?, encode(second)?);
        Ok(Self { caller, model, first, second })
    }

    /// The cosine of each pair, and the tokens of all texts.
    async fn scores(self, state: &AppState, field: &str) -> Result<(Vec<f64>, usize), ApiError> {
        let Self { caller, first, second, .. } = self;
        let tokens = first.iter().chain(&second).map(Vec::len).sum();
        let (num_first, num_pairs) = (first.len(), second.len());
        let texts = first.into_iter().chain(second).collect();
        let embeddings = encoder::embed(&state.generator, &caller, texts, field).await?;
        let (first, second) = embeddings.split_at(num_first);
        let pair = |index: usize| {
            let first = if num_first == 1 { &first[0] } else { &first[index] };
            cosine(first, &second[index])
        };
        Ok(((0..num_pairs).map(pair).collect(), tokens))
    }
}

/// Of embeddings that may be of any length; 0 beside one of length 0.
fn cosine(a: &Arc<[f32]>, b: &Arc<[f32]>) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { product(a, b) / lengths } else { 0.0 }
}

impl OneOrMany {
    fn texts(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

fn note_user(user: Option<&String>) {
    if let Some(user) = user {
        tracing::debug!(user, "request");
    }
}

/// How alike texts are.
#[derive(Serialize, ToSchema)]
pub(crate) struct ScoreAnswer {
    id: String,
    #[schema(inline)]
    object: List,
    created: u64,
    model: String,
    data: Vec<ScoreItem>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct ScoreItem {
    index: usize,
    #[schema(inline)]
    object: ScoreObject,
    /// The cosine of the texts' embeddings, from -1 to 1.
    score: f64,
}

/// Score pairs of texts
#[utoipa::path(
    post, path = "/v1/score", tag = "OpenAI", operation_id = "createScore",
    request_body = ScoreBody,
    responses((status = 200, description = "A score for each pair", body = ScoreAnswer)),
)]
pub(crate) async fn score(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<ScoreAnswer>, ApiError> {
    let compared = body
        .work(&state, |state, caller, body: ScoreBody| {
            note_user(body.user.as_ref());
            let (first, second) = (body.text_1.texts(), body.text_2.texts());
            if first.len() > 1 && first.len() != second.len() {
                let message = format!(
                    "text_1 has {} texts and text_2 {}: there must be one in text_1, or as many",
                    first.len(),
                    second.len()
                );
                return Err(ApiError::invalid(Some("text_1"), message));
            }
            let texts = [("text_1", first), ("text_2", second)];
            Compared::read(state, caller, body.model, texts, body.truncate_prompt_tokens)
        })
        .await?;
    let model = state.answering_name(compared.model.clone());
    let (scores, tokens) = compared.scores(&state, "text_2").await?;
    let item = |(index, score)| ScoreItem { index, object: ScoreObject::Word, score };
    Ok(Json(ScoreAnswer {
        id: state.next_id("score-"),
        object: List::Word,
        created: unix_seconds(),
        model,
        data: scores.into_iter().enumerate().map(item).collect(),
        usage: Usage::new(tokens),
    }))
}

/// Documents in the order of their likeness to a query.
#[derive(Serialize, ToSchema)]
pub(crate) struct RerankAnswer {
    id: String,
    model: String,
    results: Vec<RerankItem>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct RerankItem {
    /// The document's place in the request.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
    /// The cosine of its embedding and the query's, from -1 to 1.
    relevance_score: f64,
}

#[derive(Serialize, ToSchema)]
struct Document {
    text: String,
}

/// Order documents by a query
#[utoipa::path(
    post, path = "/v1/rerank", tag = "OpenAI", operation_id = "createRerank",
    request_body = RerankBody,
    responses((status = 200, description = "The documents, the likest first", body = RerankAnswer)),
)]
pub(crate) async fn rerank(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<RerankAnswer>, ApiError> {
    let (compared, documents, top_n) = body
        .work(&state, |state, caller, body: RerankBody| {
            note_user(body.user.as_ref());
            let count = body.documents.len();
            let documents = body.return_documents.unwrap_or(true).then(|| body.documents.clone());
            let texts = [("query", vec![body.query]), ("documents", body.documents)];
            let cut = body.truncate_prompt_tokens;
            let compared = Compared::read(state, caller, body.model, texts, cut)?;
            let top_n = body.top_n.filter(|&top_n| top_n > 0).unwrap_or(count);
            Ok((compared, documents, top_n))
        })
        .await?;
    let model = state.answering_name(compared.model.clone());
    let (scores, tokens) = compared.scores(&state, "documents").await?;
    let mut ranked: Vec<(usize, f64)> = scores.into_iter().enumerate().collect();
    // Stable: of equals the first.
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.truncate(top_n);
    let item = |(index, relevance_score): (usize, f64)| {
        let document = documents.as_ref().map(|texts| Document { text: texts[index].clone() });
        RerankItem { index, document, relevance_score }
    };
    Ok(Json(RerankAnswer {
        id: state.next_id("rerank-"),
        model,
        results: ranked.into_iter().map(item).collect(),
        usage: Usage::new(tokens),
    }))
}
