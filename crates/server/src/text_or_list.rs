//! Fields that are a string or a list.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, schema::Type as SchemaType,
    },
};

use crate::error::ApiError;

/// A string, or a list. Deserialized by hand, so that an error names the entry that it is in.
#[derive(Clone, Debug)]
pub(crate) enum TextOrList<T> {
    Text(String),
    List(Vec<T>),
}

impl<T> TextOrList<T> {
    /// The text, or those of the entries, a line each; `text_of` is told an entry's place.
    pub(crate) fn text(
        self,
        field: &str,
        text_of: impl Fn(T, &str) -> Result<String, ApiError>,
    ) -> Result<String, ApiError> {
        let entries = match self {
            Self::Text(text) => return Ok(text),
            Self::List(entries) => entries.into_iter().enumerate(),
        };
        let texts = entries.map(|(index, entry)| text_of(entry, &format!("{field}[{index}]")));
        Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfEither(PhantomData))
    }
}

impl<T: ToSchema> PartialSchema for TextOrList<T> {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(SchemaType::String);
        let list = ArrayBuilder::new().items(Ref::from_schema_name(T::name()));
        OneOfBuilder::new().item(text).item(list).into()
    }
}

impl<T: ToSchema> ToSchema for TextOrList<T> {
    fn name() -> Cow<'static, str> {
        format!("TextOr{}s", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into(), T::schema()));
        T::schemas(schemas);
    }
}

struct OfEither<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OfEither<T> {
    type Value = TextOrList<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string or a list")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut out = Vec::new();
        while let Some(entry) = list.next_element()? {
            out.push(entry);
        }
        Ok(TextOrList::List(out))
    }
}
