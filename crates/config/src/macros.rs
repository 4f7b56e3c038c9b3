//! The two declarations: groups of keys and closed choices.

/// Declares a group of configuration keys: the struct, its defaults, and how it is read, shown and documented. A key
/// that is a word of the language is written as a raw identifier: `r#type` is the key `type`.
///
/// ```
/// picket_config::settings! {
///     /// What the example needs.
///     pub struct Example {
///         /// How often to look.
///         pub interval: picket_config::Interval = picket_config::Interval::seconds(60),
///     }
/// }
/// assert_eq!(Example::default().interval, picket_config::Interval::seconds(60));
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])* pub $field:ident: $type:ty = $default:expr, )*
        }
    ) => {
        $(#[doc = $struct_doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::Setting for $name {
            fn read(node: &$crate::Node, key: &str, problems: &mut $crate::Problems) -> Option<Self> {
                let fields = $crate::Fields::open(node, key, problems);
                let mut group = Self::default();
                $( if let Some(value) = fields.field($crate::private::key(stringify!($field)), problems) {
                    group.$field = value;
                } )*
                fields.finish(&[$( $crate::private::key(stringify!($field)), )*], problems);
                Some(group)
            }

            fn show(&self) -> $crate::private::Value {
                let mut map = $crate::private::Map::new();
                $( map.insert($crate::private::key(stringify!($field)).to_owned(), $crate::Setting::show(&self.$field)); )*
                $crate::private::Value::Object(map)
            }

            fn schema() -> $crate::private::Value {
                let mut properties = $crate::private::Map::new();
                let defaults = Self::default();
                $(
                    let mut schema = <$type as $crate::Setting>::schema();
                    if let Some(object) = schema.as_object_mut() {
                        object.insert("description".to_owned(), concat!($($doc),*).trim().into());
                        if !<$type as $crate::Setting>::type_name().is_empty() {
                            object.insert("default".to_owned(), $crate::Setting::show(&defaults.$field));
                        }
                    }
                    properties.insert($crate::private::key(stringify!($field)).to_owned(), schema);
                )*
                $crate::private::json!({ "type": "object", "additionalProperties": false, "properties": properties })
            }

            fn type_name() -> String {
                String::new()
            }

            fn blank() -> $crate::private::Value {
                $crate::Setting::show(&Self::default())
            }

            fn document(
                key: &str,
                _text: &str,
                default: &$crate::private::Value,
                out: &mut Vec<$crate::KeyDoc>,
            ) {
                $(
                    let name = $crate::private::key(stringify!($field));
                    let path = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                    <$type as $crate::Setting>::document(&path, concat!($($doc),*).trim(), &default[name], out);
                )*
            }
        }
    };
}

/// Declares a closed choice between words. A word may have others that are read for it and never shown:
/// `Warn = "warn" | "warning"`.
///
/// ```
/// picket_config::choice! {
///     /// The day's mood.
///     pub enum Mood {
///         /// All is well.
///         Good = "good",
///         /// It is not.
///         Bad = "bad",
///     }
/// }
/// assert_eq!(Mood::Good.as_str(), "good");
/// ```
#[macro_export]
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])*
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])* $variant:ident = $word:literal $( | $alias:literal )*, )*
        }
    ) => {
        $(#[doc = $enum_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $( $(#[doc = $doc])* $variant, )*
        }

        impl $name {
            /// The word that stands for the value in configuration.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl $crate::Choice for $name {
            const WORDS: &'static [&'static str] = &[$( $word, )*];

            fn from_word(word: &str) -> Option<Self> {
                match word { $( $word $( | $alias )* => Some(Self::$variant), )* _ => None }
            }

            fn word(&self) -> &'static str {
                self.as_str()
            }
        }

        impl $crate::Setting for $name {
            fn read(node: &$crate::Node, key: &str, problems: &mut $crate::Problems) -> Option<Self> {
                <Self as $crate::Choice>::read_choice(node, key, problems)
            }

            fn show(&self) -> $crate::private::Value {
                self.as_str().into()
            }

            fn schema() -> $crate::private::Value {
                $crate::private::json!({ "enum": [$( $word, $( $alias, )* )*] })
            }

            fn type_name() -> String {
                <Self as $crate::Choice>::WORDS.join(" | ")
            }
        }
    };
}
