//! Fields that always hold one word.

/// Declares a type of one word, so that the document says which it is.
macro_rules! word {
    ($name:ident = $text:tt) => {
        #[derive(Clone, Copy, Debug, serde::Serialize, utoipa::ToSchema)]
        pub(crate) enum $name {
            #[serde(rename = $text)]
            Word,
        }
    };
}

pub(crate) use word;
