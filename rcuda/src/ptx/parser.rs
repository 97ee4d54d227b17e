//! The outer level of a module: directives, variables, kernel heads.

use std::collections::HashMap;

use super::{
    KernelCode, Module, Parameter, PtxError, PtxFault, Variable,
    instruction::{Register, Type},
    lexer::{Kind, Token, tokens},
    statement::Body,
};

/// Kernels in one module.
const MAX_KERNELS: u64 = 4096;
/// Bytes of all variables of one module.
const MAX_VARIABLE_BYTES: u64 = 1 << 30;
/// Bytes of static shared memory of one kernel.
pub const MAX_SHARED: u64 = 48 * 1024;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Symbol {
    /// Register of a type.
    Register(Register, Type),
    /// Offset in shared memory.
    Shared(u32),
    /// The start of dynamic shared memory.
    DynamicShared,
    /// Offset in local memory.
    Local(u32),
    /// Offset in the parameter block.
    Parameter(u32),
    /// Index of a module variable.
    Variable(u32),
}

/// Walks over the tokens of a text.
#[derive(Debug)]
pub struct Cursor<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
}

impl<'t> Cursor<'t> {
    /// At the first token of a text.
    pub fn new(text: &'t str) -> Result<Self, PtxError> {
        Ok(Self { tokens: tokens(text)?, at: 0 })
    }

    /// Line of the next token, or of the last one at the end.
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    /// The next token, left where it is.
    pub fn peek(&self) -> Option<Kind<'t>> {
        self.tokens.get(self.at).map(|t| t.kind)
    }

    /// The token after the next.
    pub fn peek_second(&self) -> Option<Kind<'t>> {
        self.tokens.get(self.at + 1).map(|t| t.kind)
    }

    /// The next token.
    pub fn step(&mut self) -> Option<Kind<'t>> {
        let kind = self.peek()?;
        self.at += 1;
        Some(kind)
    }

    /// An error at the line of the next token.
    pub fn error(&self, fault: PtxFault) -> PtxError {
        PtxError { line: self.line(), fault }
    }

    /// An error that names what is there.
    pub fn expected(&self, expected: &'static str) -> PtxError {
        let found = self.peek().map_or_else(|| "the end of the text".to_owned(), |kind| kind.to_string());
        self.error(PtxFault::Syntax { expected, found })
    }

    /// Takes the mark if it is next.
    pub fn take_mark(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    /// Takes a mark that must be next.
    pub fn mark(&mut self, mark: char, expected: &'static str) -> Result<(), PtxError> {
        if self.take_mark(mark) { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// Takes the word if it is next.
    pub fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Kind::Word(word));
        self.at += usize::from(found);
        found
    }

    /// Takes any word.
    pub fn word(&mut self, expected: &'static str) -> Result<&'t str, PtxError> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.expected(expected)),
        }
    }

    /// Takes an unsigned number.
    pub fn number(&mut self, expected: &'static str) -> Result<u64, PtxError> {
        let word = self.word(expected)?;
        integer(word).ok_or_else(|| {
            self.at -= 1;
            self.error(PtxFault::Number(word.chars().take(60).collect()))
        })
    }

    /// Takes `.TYPE`.
    pub fn type_name(&mut self) -> Result<Type, PtxError> {
        let ty = match self.peek() {
            Some(Kind::Word(word)) => word.strip_prefix('.').and_then(Type::from_name),
            _ => None,
        };
        let ty = ty.ok_or_else(|| self.expected("a type such as .u32"))?;
        self.at += 1;
        Ok(ty)
    }

    /// Skips what is left of a line that is already begun.
    pub fn skip_line(&mut self) {
        let line = self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).map(|t| t.line);
        while self.tokens.get(self.at).is_some_and(|t| Some(t.line) == line) {
            self.at += 1;
        }
    }

    /// Skips from `{` to its `}`.
    pub fn skip_braces(&mut self) -> Result<(), PtxError> {
        self.mark('{', "{")?;
        let mut depth = 1;
        while depth > 0 {
            match self.step() {
                Some(Kind::Mark('{')) => depth += 1,
                Some(Kind::Mark('}')) => depth -= 1,
                Some(_) => {}
                None => return Err(self.expected("}")),
            }
        }
        Ok(())
    }
}

/// An unsigned integer in PTX's notations.
pub fn integer(word: &str) -> Option<u64> {
    let digits = word.strip_suffix('U').unwrap_or(word);
    if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(binary) = digits.strip_prefix("0b").or(digits.strip_prefix("0B")) {
        u64::from_str_radix(binary, 2).ok()
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8).ok()
    } else {
        digits.parse().ok()
    }
}

/// A literal written as its bits: `0f` and 8 hex digits, `0d` and 16; true for the latter.
fn float_bits(word: &str) -> Option<(u64, bool)> {
    let (digits, double) = match word.strip_prefix(['0'])?.split_at_checked(1)? {
        ("f" | "F", digits) if digits.len() == 8 => (digits, false),
        ("d" | "D", digits) if digits.len() == 16 => (digits, true),
        _ => return None,
    };
    Some((u64::from_str_radix(digits, 16).ok()?, double))
}

/// The bits of a literal for a type; `None` if it is none or does not fit.
pub fn literal(word: &str, negative: bool, ty: Type) -> Option<u64> {
    if let Some((bits, double)) = float_bits(word) {
        let sign = u64::from(negative) << if double { 63 } else { 31 };
        let bits = bits ^ sign;
        return match (ty, double) {
            (Type::F32, true) => Some(u64::from((f64::from_bits(bits) as f32).to_bits())),
            (Type::F64, false) => Some(f64::from(f32::from_bits(bits as u32)).to_bits()),
            _ => (ty.bits() >= if double { 64 } else { 32 }).then_some(bits),
        };
    }
    if ty.is_float() {
        if !word.contains('.') {
            return None;
        }
        let value: f64 = word.parse().ok()?;
        let value = if negative { -value } else { value };
        return Some(if ty == Type::F32 { u64::from((value as f32).to_bits()) } else { value.to_bits() });
    }
    let value = integer(word)?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Reads a module.
pub fn parse(text: &str) -> Result<Module, PtxError> {
    let mut parser = Parser {
        cursor: Cursor::new(text)?,
        module: Module::default(),
        names: HashMap::new(),
        shared: 0,
        variable_bytes: 0,
    };
    if parser.cursor.peek() != Some(Kind::Word(".version")) {
        return Err(parser.cursor.expected("PTX text, which begins with .version"));
    }
    while let Some(kind) = parser.cursor.peek() {
        match kind {
            Kind::Word(word) => parser.directive(word)?,
            _ => return Err(parser.cursor.expected("a directive")),
        }
    }
    Ok(parser.module)
}

struct Parser<'t> {
    cursor: Cursor<'t>,
    module: Module,
    names: HashMap<&'t str, Symbol>,
    /// Bytes of shared variables outside kernels: every kernel has them.
    shared: u64,
    variable_bytes: u64,
}

impl<'t> Parser<'t> {
    fn directive(&mut self, word: &'t str) -> Result<(), PtxError> {
        let cursor = &mut self.cursor;
        match word {
            ".version" | ".target" | ".file" | ".loc" => {
                cursor.step();
                cursor.skip_line();
            }
            ".address_size" => {
                cursor.step();
                if cursor.number("64")? != 64 {
                    return Err(cursor.error(PtxFault::Directive(".address_size other than 64".into())));
                }
            }
            ".section" => {
                while cursor.peek().is_some_and(|kind| kind != Kind::Mark('{')) {
                    cursor.step();
                }
                cursor.skip_braces()?;
            }
            ".visible" | ".weak" | ".common" => {
                cursor.step();
            }
            ".extern" => {
                cursor.step();
                if cursor.peek() != Some(Kind::Word(".shared")) {
                    return Err(cursor.error(PtxFault::Directive(".extern outside shared memory".into())));
                }
            }
            ".shared" => {
                cursor.step();
                let declared = declaration(cursor)?;
                let symbol = place_shared(cursor, &declared, &mut self.shared)?;
                define(cursor, &mut self.names, declared.name, symbol)?;
            }
            ".global" | ".const" => {
                cursor.step();
                self.variable()?;
            }
            ".entry" => {
                cursor.step();
                self.kernel()?;
            }
            _ => return Err(cursor.error(PtxFault::Directive(word.chars().take(60).collect()))),
        }
        Ok(())
    }

    fn variable(&mut self) -> Result<(), PtxError> {
        let cursor = &mut self.cursor;
        let declared = declaration_head(cursor)?;
        let size = declared.bytes.ok_or_else(|| cursor.expected("a size between [ and ]"))?;
        let mut initial = Vec::new();
        if cursor.take_mark('=') {
            let list = cursor.take_mark('{');
            loop {
                let negative = cursor.take_mark('-');
                let word = cursor.word("a number")?;
                let bits = literal(word, negative, declared.ty)
                    .ok_or_else(|| cursor.error(PtxFault::Number(word.chars().take(60).collect())))?;
                initial.extend_from_slice(&bits.to_le_bytes()[..declared.ty.bytes() as usize]);
                if initial.len() as u64 > size {
                    return Err(cursor.expected("no more values than the variable has"));
                }
                if !list || !cursor.take_mark(',') {
                    break;
                }
            }
            if list {
                cursor.mark('}', "}")?;
            }
        }
        cursor.mark(';', ";")?;
        self.variable_bytes = self.variable_bytes.saturating_add(size);
        limit(cursor, "bytes of variables", self.variable_bytes, MAX_VARIABLE_BYTES)?;
        let index = self.module.variables.len() as u32;
        define(cursor, &mut self.names, declared.name, Symbol::Variable(index))?;
        self.module.variables.push(Variable { name: declared.name.to_owned(), size, initial });
        Ok(())
    }

    fn kernel(&mut self) -> Result<(), PtxError> {
        limit(&self.cursor, "kernels", self.module.kernels.len() as u64 + 1, MAX_KERNELS)?;
        let (name, parameters, parameter_bytes) = head(&mut self.cursor)?;
        let mut max_threads = None;
        let mut names = self.names.clone();
        for (parameter, word) in &parameters {
            define(&self.cursor, &mut names, word, Symbol::Parameter(parameter.offset))?;
        }
        loop {
            match self.cursor.peek() {
                Some(Kind::Word(".maxntid" | ".reqntid")) => {
                    self.cursor.step();
                    let mut threads = self.cursor.number("a number of threads")?;
                    while self.cursor.take_mark(',') {
                        threads = threads.saturating_mul(self.cursor.number("a number of threads")?);
                    }
                    max_threads = Some(threads);
                }
                Some(Kind::Word(".minnctapersm" | ".maxnctapersm" | ".maxnreg")) => {
                    self.cursor.step();
                    self.cursor.number("a number")?;
                }
                Some(Kind::Word(".noreturn")) => {
                    self.cursor.step();
                }
                _ => break,
            }
        }
        let mut body = Body::new(&mut self.cursor, names, self.shared);
        body.parse()?;
        let (code, registers, shared, local) = body.finish()?;
        self.module.kernels.push(KernelCode {
            name: name.to_owned(),
            parameters: parameters.into_iter().map(|(parameter, _)| parameter).collect(),
            parameter_bytes,
            shared_bytes: shared,
            local_bytes: local,
            registers,
            max_threads,
            code,
        });
        Ok(())
    }
}

/// A kernel's name, its parameters with their names in the text, and the size of its parameter block.
pub type Head<'t> = (&'t str, Vec<(Parameter, &'t str)>, u32);

/// Reads `NAME ( .param ..., ... )`.
pub fn head<'t>(cursor: &mut Cursor<'t>) -> Result<Head<'t>, PtxError> {
    let name = cursor.word("a kernel's name")?;
    let mut parameters = Vec::new();
    let mut end: u64 = 0;
    if cursor.take_mark('(') && !cursor.take_mark(')') {
        loop {
            if !cursor.take_word(".param") {
                return Err(cursor.expected(".param or )"));
            }
            let declared = declaration_head(cursor)?;
            let size = declared.bytes.ok_or_else(|| cursor.expected("a size between [ and ]"))?;
            let offset = end.next_multiple_of(declared.align);
            end = offset.saturating_add(size);
            limit(cursor, "bytes of parameters", end, crate::wire::message::MAX_PARAMETERS as u64)?;
            let parameter =
                Parameter { name: declared.name.to_owned(), offset: offset as u32, size: size as u32 };
            parameters.push((parameter, declared.name));
            if !cursor.take_mark(',') {
                break;
            }
        }
        cursor.mark(')', ") after the parameters")?;
    }
    Ok((name, parameters, end as u32))
}

/// A declared variable or parameter.
#[derive(Debug)]
pub struct Declared<'t> {
    /// Name.
    pub name: &'t str,
    /// Element type.
    pub ty: Type,
    /// Alignment, a power of two.
    pub align: u64,
    /// Bytes; `None` for `name[]`.
    pub bytes: Option<u64>,
}

/// Reads `.align N .TYPE name[N];`.
pub fn declaration<'t>(cursor: &mut Cursor<'t>) -> Result<Declared<'t>, PtxError> {
    let declared = declaration_head(cursor)?;
    cursor.mark(';', ";")?;
    Ok(declared)
}

/// Reads `.align N .TYPE name[N]`.
pub fn declaration_head<'t>(cursor: &mut Cursor<'t>) -> Result<Declared<'t>, PtxError> {
    let mut align = None;
    let mut ty = None;
    let mut elements: u64 = 1;
    let name = loop {
        match cursor.peek() {
            Some(Kind::Word(".align")) => {
                cursor.step();
                let asked = cursor.number("an alignment")?;
                if !asked.is_power_of_two() || asked > 128 {
                    return Err(cursor.error(PtxFault::Number(format!(".align {asked}"))));
                }
                align = Some(asked);
            }
            Some(Kind::Word(".ptr" | ".global" | ".shared" | ".const" | ".local")) => {
                cursor.step();
            }
            Some(Kind::Word(word @ (".v2" | ".v4"))) => {
                cursor.step();
                elements = if word == ".v2" { 2 } else { 4 };
            }
            Some(Kind::Word(word)) if word.starts_with('.') => ty = Some(cursor.type_name()?),
            _ => break cursor.word("a name")?,
        }
    };
    let ty = ty.ok_or_else(|| cursor.expected("a type such as .u32 before the name"))?;
    let mut bytes = Some(u64::from(ty.bytes()).saturating_mul(elements));
    let natural = u64::from(ty.bytes()) * elements;
    while cursor.take_mark('[') {
        if cursor.take_mark(']') {
            bytes = None;
        } else {
            let count = cursor.number("a number of elements")?;
            bytes = bytes.map(|b| b.saturating_mul(count));
            cursor.mark(']', "]")?;
        }
    }
    Ok(Declared { name, ty, align: align.unwrap_or(natural).max(1), bytes })
}

/// Gives a shared variable its place; `name[]` is where dynamic shared memory begins.
pub fn place_shared(cursor: &Cursor<'_>, declared: &Declared<'_>, end: &mut u64) -> Result<Symbol, PtxError> {
    let Some(bytes) = declared.bytes else { return Ok(Symbol::DynamicShared) };
    let offset = end.next_multiple_of(declared.align);
    *end = offset.saturating_add(bytes);
    limit(cursor, "bytes of shared memory", *end, MAX_SHARED)?;
    Ok(Symbol::Shared(offset as u32))
}

/// Enters a name.
pub fn define<'t>(
    cursor: &Cursor<'t>,
    names: &mut HashMap<&'t str, Symbol>,
    name: &'t str,
    symbol: Symbol,
) -> Result<(), PtxError> {
    match names.insert(name, symbol) {
        None => Ok(()),
        Some(_) => Err(cursor.error(PtxFault::Twice(name.chars().take(60).collect()))),
    }
}

/// Refuses more than a limit.
pub fn limit(cursor: &Cursor<'_>, what: &'static str, found: u64, limit: u64) -> Result<(), PtxError> {
    if found <= limit { Ok(()) } else { Err(cursor.error(PtxFault::Limit { what, found, limit })) }
}
