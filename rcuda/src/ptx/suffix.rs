//! An opcode's suffixes, taken one by one by whoever understands them.

use super::{
    PtxError, PtxFault,
    instruction::{Finish, Type},
};

/// An opcode with the suffixes that were not taken yet.
pub struct Opcode<'t> {
    text: &'t str,
    line: u32,
    /// Not taken yet, in order.
    pub suffixes: Vec<&'t str>,
}

impl<'t> Opcode<'t> {
    /// Splits a word into name and suffixes.
    pub fn new(text: &'t str, line: u32) -> (&'t str, Self) {
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or_default();
        (name, Self { text, line, suffixes: parts.collect() })
    }

    /// The refusal that names the whole opcode.
    pub fn unsupported(&self) -> PtxError {
        let text = self.text.chars().take(80).collect();
        PtxError { line: self.line, fault: PtxFault::Instruction(text) }
    }

    /// Takes a suffix wherever it stands.
    pub fn take(&mut self, suffix: &str) -> bool {
        let found = self.suffixes.iter().position(|s| *s == suffix);
        if let Some(at) = found {
            self.suffixes.remove(at);
        }
        found.is_some()
    }

    /// Takes suffixes that change nothing here.
    pub fn skip(&mut self, suffixes: &[&str]) {
        self.suffixes.retain(|s| !suffixes.contains(s));
    }

    /// Takes the first suffix that a table knows.
    pub fn choose<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        for at in 0..self.suffixes.len() {
            if let Some((_, value)) = table.iter().find(|(name, _)| *name == self.suffixes[at]) {
                self.suffixes.remove(at);
                return Some(*value);
            }
        }
        None
    }

    /// Takes the next type.
    pub fn ty(&mut self) -> Result<Type, PtxError> {
        let at = self.suffixes.iter().position(|s| Type::from_name(s).is_some());
        let ty = at.and_then(|at| Type::from_name(self.suffixes.remove(at)));
        ty.ok_or_else(|| self.unsupported())
    }

    /// Takes the type, which must be one of these kinds.
    pub fn ty_where(&mut self, accepts: fn(Type) -> bool) -> Result<Type, PtxError> {
        let ty = self.ty()?;
        if accepts(ty) { Ok(ty) } else { Err(self.unsupported()) }
    }

    /// Takes `.ftz` and `.sat`.
    pub fn finish(&mut self) -> Finish {
        Finish { flush: self.take("ftz"), saturate: self.take("sat") }
    }

    /// Refuses if a suffix is left.
    pub fn end(&self) -> Result<(), PtxError> {
        if self.suffixes.is_empty() { Ok(()) } else { Err(self.unsupported()) }
    }
}
