//! The forms of a recipe's words: what a name, a path, a module or a password's hash looks like.

use jiff::{Timestamp, civil, tz::TimeZone};
use toml::Spanned;

use crate::fault::Source;

pub(super) fn checked(
    source: &Source<'_>,
    value: Spanned<&str>,
    wanted: &str,
    ok: impl Fn(&str) -> bool,
) -> Option<String> {
    if ok(value.get_ref()) {
        return Some((*value.get_ref()).to_owned());
    }
    source.fault(value.span(), format!("\"{}\" is not {wanted}", value.get_ref()), "");
    None
}

pub(super) fn all(
    source: &Source<'_>,
    values: Vec<Spanned<&str>>,
    wanted: &str,
    ok: impl Fn(&str) -> bool,
) -> Vec<String> {
    values.into_iter().filter_map(|v| checked(source, v, wanted, &ok)).collect()
}

pub(super) fn text(value: Option<Spanned<&str>>) -> Option<String> {
    value.map(|v| (*v.get_ref()).to_owned())
}

pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
}

/// The beginning of a day, in UTC.
pub(super) fn day(text: &str) -> Option<Timestamp> {
    let date: civil::Date = text.parse().ok()?;
    date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// The form of crypt(5): method, parameters or salt, hash.
pub(super) fn is_password_hash(text: &str) -> bool {
    let fields: Vec<&str> = text.split('$').collect();
    let form = match fields[..] {
        ["", "y", parameters, salt, hash] => !parameters.is_empty() && !salt.is_empty() && hash.len() == 43,
        ["", "5", .., hash] => (4..=5).contains(&fields.len()) && hash.len() == 43,
        ["", "6", .., hash] => (4..=5).contains(&fields.len()) && hash.len() == 86,
        _ => false,
    };
    form && text.len() <= 256 && text.chars().all(|c| c.is_ascii_alphanumeric() || "./$=,".contains(c))
}

pub(super) fn is_package(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

pub(super) fn is_module(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

pub(super) fn is_glob(text: &str) -> bool {
    is_module(text) || is_relative(text)
}

pub(super) fn is_relative(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('/') && text.split('/').all(|part| part != ".." && !part.is_empty())
}

pub(super) fn is_absolute(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(is_relative)
}

pub(super) fn is_argument(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

pub(super) fn is_url(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

pub(super) fn is_owner(text: &str) -> bool {
    let (user, group) = text.split_once(':').unwrap_or((text, "root"));
    [user, group].into_iter().all(is_account)
}

pub(super) fn is_account(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.len() <= 31
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}
