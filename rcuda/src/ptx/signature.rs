//! Kernels' parameter lists and variables of a PTX text, whatever instructions its bodies use.

use super::{
    Parameter, PtxError,
    lexer::Kind,
    parser::{Cursor, declaration_head, head},
};

/// What a module defines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// Name and parameters of each `.entry` that has a body.
    pub kernels: Vec<(String, Vec<Parameter>)>,
    /// Name and bytes of each variable in device memory.
    pub variables: Vec<(String, u64)>,
}

/// Reads what a text defines.
pub fn signature(text: &str) -> Result<Signature, PtxError> {
    let mut cursor = Cursor::new(text)?;
    let mut found = Signature::default();
    while let Some(kind) = cursor.peek() {
        match kind {
            Kind::Word(".entry") => {
                cursor.step();
                let (name, parameters, _) = head(&mut cursor)?;
                while !matches!(cursor.peek(), Some(Kind::Mark('{' | ';')) | None) {
                    cursor.step();
                }
                if cursor.peek() == Some(Kind::Mark('{')) {
                    cursor.skip_braces()?;
                    found.kernels.push((name.to_owned(), parameters.into_iter().map(|(p, _)| p).collect()));
                }
            }
            Kind::Word(".global" | ".const") => {
                cursor.step();
                let declared = declaration_head(&mut cursor)?;
                found.variables.push((declared.name.to_owned(), declared.bytes.unwrap_or(0)));
            }
            // The body of a function, or the values of a variable.
            Kind::Mark('{') => cursor.skip_braces()?,
            _ => {
                cursor.step();
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_layouts_without_reading_bodies() {
        let text = "
.version 8.5
.target sm_90
.address_size 64
.extern .func (.param .b32 r) vprintf (.param .b64 a);
.global .align 4 .b8 table[12] = {1, 2, 3};
.const .f64 pi = 0d400921FB54442D18;
.func helper() { ret; }
.visible .entry first(.param .u8 a, .param .align 16 .b8 b[24], .param .u64 .ptr .global .align 4 c)
.maxntid 256, 1, 1
{ wgmma.fence.sync.aligned; { nested; } ret; }
.entry second() { ret; }
";
        let found = signature(text).unwrap_or_default();
        let layouts: Vec<_> = found
            .kernels
            .iter()
            .map(|(name, p)| (name.as_str(), p.iter().map(|p| (p.offset, p.size)).collect::<Vec<_>>()))
            .collect();
        assert_eq!(layouts, [("first", vec![(0, 1), (16, 24), (40, 8)]), ("second", vec![])]);
        assert_eq!(found.variables, [("table".to_owned(), 12), ("pi".to_owned(), 8)]);
    }
}
