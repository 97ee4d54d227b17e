//! Turns messages into bytes and back.
//!
//! The [`message!`](crate::message) macro defines a message, its encoding, its decoding and a text of its
//! layout from one declaration, so that the four can't drift apart. The layout texts make up the protocol hash.

use thiserror::Error;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The message ends before its last field.
    #[error("the message ends {missing} bytes early")]
    Short {
        /// Bytes that the field wanted beyond the end.
        missing: usize,
    },
    /// Bytes are left after the last field.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// A tag that this protocol version does not have.
    #[error("{name} has no variant {tag}")]
    Tag {
        /// Enum.
        name: &'static str,
        /// Tag found.
        tag: u16,
    },
    /// A string is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A list says that it is longer than the message.
    #[error("a list of {0} entries can't fit into its message")]
    Count(u64),
}

/// Takes fields off the front of a message.
#[derive(Debug)]
pub struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    /// Reads from the first byte on.
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'b [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(Malformed::Short { missing: count - self.rest.len() });
        };
        self.rest = rest;
        Ok(head)
    }

    /// A `u32` that counts entries of at least one byte each.
    fn count(&mut self) -> Result<usize, Malformed> {
        let count = u32::take(self)? as usize;
        if count > self.rest.len() { Err(Malformed::Count(count as u64)) } else { Ok(count) }
    }

    /// Ends the message: nothing may be left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }
}

/// A value with an encoding.
pub trait Wire: Sized {
    /// Appends the encoding.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes one value.
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// Decodes a whole message.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = Self::take(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }
}

macro_rules! number {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                let bytes = from.bytes(size_of::<$ty>())?;
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                Ok(<$ty>::from_le_bytes(raw))
            }
        }
    )*};
}
number!(u8, u16, u32, i32, u64, f32);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(Malformed::Tag { name: "bool", tag: tag.into() }),
        }
    }
}

/// Bulk data: copied as one piece, where a `Vec<u8>` would go byte by byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // A longer one can't be sent: the frame limit is far below 4 GiB.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(bytes);
}

impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(&self.0, out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count()?;
        Ok(Bytes(from.bytes(count)?.to_vec()))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count()?;
        let text = str::from_utf8(from.bytes(count)?).map_err(|_| Malformed::Text)?;
        Ok(text.to_owned())
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for entry in self {
            entry.put(out);
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count()?;
        // Grows with what is really there: an entry in memory may be larger than its encoding.
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(T::take(from)?);
        }
        Ok(entries)
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        for entry in self {
            entry.put(out);
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Vec::with_capacity(N);
        for _ in 0..N {
            entries.push(T::take(from)?);
        }
        entries.try_into().map_err(|_| Malformed::Short { missing: 0 })
    }
}

/// FNV-1a over a layout text, spaces left out: the compiler is free in how it spaces a type's name.
pub const fn layout_hash(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b' ' && bytes[at] != b'\n' {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        }
        at += 1;
    }
    hash
}

/// Defines a struct or enum that travels: fields in order, enums with a `u16` tag in front.
#[macro_export]
macro_rules! message {
    ($(#[$meta:meta])* struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $ty:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        impl $name {
            /// Layout text, part of the protocol hash.
            pub const LAYOUT: &'static str =
                concat!("struct ", stringify!($name), $(" ", stringify!($field), ":", stringify!($ty),)* ";");
        }

        impl $crate::wire::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::codec::Wire::put(&self.$field, out);)*
            }
            fn take(
                from: &mut $crate::wire::codec::Reader<'_>,
            ) -> Result<Self, $crate::wire::codec::Malformed> {
                Ok(Self { $($field: $crate::wire::codec::Wire::take(from)?,)* })
            }
        }
    };
    ($(#[$meta:meta])* enum $name:ident {
        $($(#[$variant_meta:meta])* $tag:literal = $variant:ident {
            $($(#[$field_meta:meta])* $field:ident: $ty:ty,)*
        },)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant { $($(#[$field_meta])* $field: $ty,)* },)*
        }

        impl $name {
            /// Layout text, part of the protocol hash.
            pub const LAYOUT: &'static str = concat!("enum ", stringify!($name), $(
                " ", stringify!($tag), "=", stringify!($variant), $(" ", stringify!($field), ":", stringify!($ty),)*
            )* ";");

            /// Name of the variant, for log lines.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant { .. } => stringify!($variant),)* }
            }
        }

        impl $crate::wire::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field,)* } => {
                        u16::put(&$tag, out);
                        $($crate::wire::codec::Wire::put($field, out);)*
                    })*
                }
            }
            fn take(
                from: &mut $crate::wire::codec::Reader<'_>,
            ) -> Result<Self, $crate::wire::codec::Malformed> {
                match <u16 as $crate::wire::codec::Wire>::take(from)? {
                    $($tag => Ok(Self::$variant { $($field: $crate::wire::codec::Wire::take(from)?,)* }),)*
                    tag => Err($crate::wire::codec::Malformed::Tag { name: stringify!($name), tag }),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    message! {
        /// One of each.
        struct Sample {
            /// A number.
            number: u32,
            /// A list.
            list: Vec<String>,
            /// Bulk.
            bulk: Bytes,
            /// Fixed.
            grid: [u32; 3],
        }
    }

    #[test]
    fn what_was_put_is_taken() {
        let sample = Sample {
            number: 7,
            list: vec!["a".into(), String::new()],
            bulk: Bytes(vec![1, 2, 3]),
            grid: [1, 2, 3],
        };
        let mut bytes = Vec::new();
        sample.put(&mut bytes);
        assert_eq!(Sample::from_bytes(&bytes), Ok(sample));
        for end in 0..bytes.len() {
            assert!(Sample::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert_eq!(Sample::from_bytes(&bytes), Err(Malformed::Trailing(1)));
    }

    #[test]
    fn a_count_beyond_the_message_allocates_nothing() {
        let bytes = u32::MAX.to_le_bytes();
        assert_eq!(Bytes::from_bytes(&bytes), Err(Malformed::Count(u32::MAX.into())));
        assert_eq!(Vec::<Sample>::from_bytes(&bytes), Err(Malformed::Count(u32::MAX.into())));
    }

    #[test]
    fn the_layout_text_names_every_field() {
        assert_eq!(
            Sample::LAYOUT.replace(' ', ""),
            "structSamplenumber:u32list:Vec<String>bulk:Bytesgrid:[u32;3];"
        );
        assert_ne!(layout_hash(0, "a:u32"), layout_hash(0, "a:u64"));
        assert_eq!(layout_hash(0, "Vec < u8 >"), layout_hash(0, "Vec<u8>"));
    }
}
