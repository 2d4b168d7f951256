//! The fields that bodies deserialize beside those that the document has.

use std::collections::BTreeSet;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_json::Value;
use utoipa::ToSchema;

use super::{document, type_name};
use crate::{
    anthropic::{content, messages, tools as message_tools},
    generation::settings::{GenerationFields, StreamOptions},
    json::Body,
    openai::{
        batches, chat, completions, embeddings, messages as chat_messages, responses, scores, tools,
    },
    tokenize,
};

type Names = BTreeSet<&'static str>;

/// Notes which fields a struct asks for, and gives it none.
struct Asked<'a>(&'a mut Names);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(fields);
        Err(Error::custom("noted"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn deserialized<T: for<'de> Deserialize<'de>>() -> Names {
    let mut names = Names::new();
    assert!(T::deserialize(Asked(&mut names)).is_err() && !names.is_empty());
    names
}

fn documented<T: ToSchema>(document: &Value) -> BTreeSet<&str> {
    let schema = &document["components"]["schemas"][type_name::<T>()];
    assert_eq!(schema["additionalProperties"], false, "{}", type_name::<T>());
    schema["properties"].as_object().expect("fields").keys().map(String::as_str).collect()
}

fn without(mut names: Names, refused: &[&'static str]) -> Names {
    names.retain(|name| !refused.contains(name));
    names
}

/// A body of its own fields and those of a type that it flattens.
fn check_flattened<B: Body + ToSchema, Shared: for<'de> Deserialize<'de>>(
    own: &[&'static str],
    document: &Value,
) {
    let refused: Vec<_> = B::UNSUPPORTED.iter().chain(B::SHARED).map(|(name, _)| *name).collect();
    let mut names = deserialized::<Shared>();
    names.extend(own);
    assert_eq!(without(names, &refused), documented::<B>(document), "{}", type_name::<B>());
}

fn check<T: for<'de> Deserialize<'de> + ToSchema>(refused: &[&'static str], document: &Value) {
    let names = without(deserialized::<T>(), refused);
    assert_eq!(names, documented::<T>(document), "{}", type_name::<T>());
}

#[test]
fn the_document_has_the_fields_that_are_deserialized() {
    let all = &document("");
    check_flattened::<chat::ChatBody, GenerationFields>(chat::OWN_FIELDS, all);
    check_flattened::<completions::CompletionBody, GenerationFields>(completions::OWN_FIELDS, all);
    check_flattened::<responses::ResponsesBody, GenerationFields>(responses::OWN_FIELDS, all);
    check_flattened::<messages::MessagesBody, messages::Asked>(messages::OWN_FIELDS, all);
    check::<messages::Asked>(&[], all);
    check::<embeddings::EmbeddingBody>(&[], all);
    check::<scores::ScoreBody>(&[], all);
    check::<scores::RerankBody>(&[], all);
    check::<batches::BatchBody>(&[], all);
    check::<tokenize::TokenizeBody>(&[], all);
    check::<tokenize::DetokenizeBody>(&[], all);
    check::<StreamOptions>(&[], all);
    // Those that are refused unless they are empty.
    check::<chat_messages::MessageBody>(&["annotations", "audio", "function_call"], all);
    check::<chat_messages::PartBody>(&[], all);
    check::<tools::ToolBody>(&[], all);
    check::<tools::NamedChoice>(&[], all);
    check::<tools::CallBody>(&[], all);
    check::<responses::ItemBody>(&[], all);
    check::<responses::TextBody>(&[], all);
    check::<content::MessageBody>(&[], all);
    check::<content::BlockBody>(&["citations", "source", "title", "context"], all);
    check::<content::CacheControl>(&[], all);
    check::<message_tools::ToolBody>(&[], all);
    check::<message_tools::ToolChoiceBody>(&[], all);
}
