//! What every noun is made of: tenants' numbers, pages, secrets that never show.

use crate::error::{DbError, Result};
use serde::{Deserialize, Serialize};

/// The longest page of any list; a longer one that is asked for is cut to it.
pub const PAGE_MAX: u32 = 1000;

/// Whose data it is: the first column of every key. A small number, because it is in every row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub i32);

impl TenantId {
    /// The one tenant that every hub has.
    pub const DEFAULT: Self = Self(1);
}

impl std::fmt::Display for TenantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for TenantId {
    type Err = DbError;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse().ok().filter(|number| *number > 0);
        number.map(Self).ok_or_else(|| DbError::invalid("read a tenant's number", "it is not a positive number"))
    }
}

/// A SHA-256 digest (FIPS 180-4).
pub type Sha256 = [u8; 32];

/// The number of a row's state: grows by one with each change, and an update names the one it was made from.
pub type Revision = i64;

/// Where a list goes on: opaque to whoever holds it, and of no use in another list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub(crate) String);

impl Cursor {
    /// The cursor as it was given out before.
    ///
    /// # Errors
    /// [`DbError::Invalid`] when no cursor looks like this. One of another list is refused where it is used.
    pub fn parse(text: &str) -> Result<Self> {
        // A sort key of up to 512 characters (a name) in hexadecimal, an id and the tag in front.
        let fits = text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        if !fits || text.is_empty() {
            return Err(DbError::invalid("read a cursor", "it is not one that was given out by a list"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text to give out: letters, digits, dots and hyphens.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Where the part before ended; none for the first.
    pub after: Option<Cursor>,
    /// At most so many, 1 to [`PAGE_MAX`].
    pub limit: u32,
}

impl PageRequest {
    /// The first `limit`.
    pub fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }

    /// The `limit` after `cursor`.
    pub fn after(cursor: Cursor, limit: u32) -> Self {
        Self { after: Some(cursor), limit }
    }

    /// The limit within its bounds.
    pub fn bounded(&self) -> u32 {
        self.limit.clamp(1, PAGE_MAX)
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self::first(100)
    }
}

/// Part of a list. Rows that come while it is paged may or may not be in it; none that was there before is left out or
/// given twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next part begins; none at the end.
    pub next: Option<Cursor>,
}

impl<T> Page<T> {
    /// The same page of something else.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(f).collect(), next: self.next }
    }
}

/// Text that must not be shown: a password's PHC string, a sealed key. `Debug` says that there is one, no more.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Words that a noun has in the database and on the wire.
macro_rules! words {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$inner])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All of them, in their order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the database and on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The one that the word stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;
