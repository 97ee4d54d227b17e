//! The inside of a kernel: declarations, labels, and operands. [`super::opcode`] knows the instructions.

use std::collections::HashMap;

use super::{
    PtxError, PtxFault,
    instruction::{Address, Instruction, LaneOrder, Operand, Operation, Register, Space, Special, Type},
    lexer::Kind,
    parser::{Cursor, Symbol, declaration, define, limit, literal, place_shared},
};

/// Registers of one kernel.
const MAX_REGISTERS: u64 = 8192;
/// Instructions of one kernel.
const MAX_CODE: u64 = 1 << 20;
/// Bytes of local memory of one thread.
const MAX_LOCAL: u64 = 64 * 1024;
/// Blocks inside blocks.
const MAX_DEPTH: u64 = 64;

/// Code, registers, bytes of shared memory, bytes of local memory.
pub type Finished = (Vec<Instruction>, u32, u32, u32);

/// Registers declared together: `%r<5>` is `%r0` to `%r4`.
#[derive(Debug)]
struct Range<'t> {
    prefix: &'t str,
    count: u64,
    first: Register,
    ty: Type,
}

/// Names that end with their block.
#[derive(Debug, Default)]
struct Scope<'t> {
    names: HashMap<&'t str, Symbol>,
    ranges: Vec<Range<'t>>,
}

impl Scope<'_> {
    fn find(&self, name: &str) -> Option<Symbol> {
        self.names.get(name).copied().or_else(|| {
            self.ranges.iter().find_map(|range| {
                let digits = name.strip_prefix(range.prefix)?;
                let number: u64 = digits.parse().ok()?;
                let canonical = digits.len() == 1 || !digits.starts_with(['0', '+']);
                (canonical && number < range.count)
                    .then(|| Symbol::Register(range.first + number as Register, range.ty))
            })
        })
    }
}

/// A kernel's body while it is read.
pub struct Body<'c, 't> {
    /// Where in the text.
    pub cursor: &'c mut Cursor<'t>,
    scopes: Vec<Scope<'t>>,
    labels: HashMap<&'t str, u32>,
    /// Branches whose label may come later: instruction, label, line.
    pending: Vec<(usize, &'t str, u32)>,
    code: Vec<Instruction>,
    registers: u64,
    shared: u64,
    local: u64,
}

fn short(word: &str) -> String {
    word.chars().take(60).collect()
}

impl<'c, 't> Body<'c, 't> {
    /// A body that sees these names; `shared` bytes of shared memory are taken already.
    pub fn new(cursor: &'c mut Cursor<'t>, names: HashMap<&'t str, Symbol>, shared: u64) -> Self {
        Self {
            cursor,
            scopes: vec![Scope { names, ranges: Vec::new() }],
            labels: HashMap::new(),
            pending: Vec::new(),
            code: Vec::new(),
            registers: 0,
            shared,
            local: 0,
        }
    }

    /// Reads from `{` to its `}`.
    pub fn parse(&mut self) -> Result<(), PtxError> {
        self.cursor.mark('{', "{ and the kernel's body")?;
        self.scopes.push(Scope::default());
        while self.scopes.len() > 1 {
            self.statement()?;
        }
        Ok(())
    }

    /// Resolves the branches.
    pub fn finish(mut self) -> Result<Finished, PtxError> {
        for (index, label, line) in std::mem::take(&mut self.pending) {
            let fault = || PtxError { line, fault: PtxFault::Unknown(short(label)) };
            let target = *self.labels.get(label).ok_or_else(fault)?;
            if let Some(instruction) = self.code.get_mut(index) {
                instruction.operation = Operation::Branch { target };
            }
        }
        Ok((self.code, self.registers as u32, self.shared as u32, self.local as u32))
    }

    fn statement(&mut self) -> Result<(), PtxError> {
        match (self.cursor.peek(), self.cursor.peek_second()) {
            (Some(Kind::Mark('{')), _) => {
                limit(self.cursor, "nested blocks", self.scopes.len() as u64, MAX_DEPTH)?;
                self.cursor.step();
                self.scopes.push(Scope::default());
                Ok(())
            }
            (Some(Kind::Mark('}')), _) => {
                self.cursor.step();
                self.scopes.pop();
                Ok(())
            }
            (Some(Kind::Mark(';')), _) => {
                self.cursor.step();
                Ok(())
            }
            (Some(Kind::Word(label)), Some(Kind::Mark(':'))) => {
                if self.labels.insert(label, self.code.len() as u32).is_some() {
                    return Err(self.cursor.error(PtxFault::Twice(short(label))));
                }
                self.cursor.step();
                self.cursor.step();
                Ok(())
            }
            (Some(Kind::Word(word)), _) if word.starts_with('.') => self.directive(word),
            (Some(Kind::Word(_) | Kind::Mark('@')), _) => self.instruction(),
            _ => Err(self.cursor.expected("an instruction or }")),
        }
    }

    fn directive(&mut self, word: &'t str) -> Result<(), PtxError> {
        let unsupported = self.cursor.error(PtxFault::Directive(short(word)));
        self.cursor.step();
        match word {
            ".reg" => self.register_declaration(),
            ".shared" => {
                let declared = declaration(self.cursor)?;
                let symbol = place_shared(self.cursor, &declared, &mut self.shared)?;
                self.define(declared.name, symbol)
            }
            ".local" => {
                let declared = declaration(self.cursor)?;
                let bytes = declared.bytes.ok_or_else(|| self.cursor.expected("a size between [ and ]"))?;
                let offset = self.local.next_multiple_of(declared.align);
                self.local = offset.saturating_add(bytes);
                limit(self.cursor, "bytes of local memory", self.local, MAX_LOCAL)?;
                self.define(declared.name, Symbol::Local(offset as u32))
            }
            ".loc" | ".file" => {
                self.cursor.skip_line();
                Ok(())
            }
            ".pragma" => {
                while !self.cursor.take_mark(';') {
                    if self.cursor.step().is_none() {
                        return Err(self.cursor.expected(";"));
                    }
                }
                Ok(())
            }
            _ => Err(unsupported),
        }
    }

    fn define(&mut self, name: &'t str, symbol: Symbol) -> Result<(), PtxError> {
        match self.scopes.last_mut() {
            Some(scope) => define(self.cursor, &mut scope.names, name, symbol),
            None => Ok(()),
        }
    }

    fn register_declaration(&mut self) -> Result<(), PtxError> {
        let ty = self.cursor.type_name()?;
        loop {
            let name = self.cursor.word("a register's name")?;
            let first = self.registers as Register;
            if self.cursor.take_mark('<') {
                let count = self.cursor.number("a number of registers")?;
                self.cursor.mark('>', ">")?;
                self.registers = self.registers.saturating_add(count);
                limit(self.cursor, "registers", self.registers, MAX_REGISTERS)?;
                if let Some(scope) = self.scopes.last_mut() {
                    scope.ranges.push(Range { prefix: name, count, first, ty });
                }
            } else {
                self.registers += 1;
                limit(self.cursor, "registers", self.registers, MAX_REGISTERS)?;
                self.define(name, Symbol::Register(first, ty))?;
            }
            if !self.cursor.take_mark(',') {
                break;
            }
        }
        self.cursor.mark(';', ";")
    }

    fn instruction(&mut self) -> Result<(), PtxError> {
        let line = self.cursor.line();
        limit(self.cursor, "instructions", self.code.len() as u64 + 1, MAX_CODE)?;
        let guard = if self.cursor.take_mark('@') {
            let negated = self.cursor.take_mark('!');
            Some((self.destination()?, negated))
        } else {
            None
        };
        let operation = self.operation()?;
        self.cursor.mark(';', "; after the instruction")?;
        self.code.push(Instruction { line, guard, operation });
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Symbol> {
        self.scopes.iter().rev().find_map(|scope| scope.find(name))
    }

    fn unknown(&self, word: &str, line: u32) -> PtxError {
        PtxError { line, fault: PtxFault::Unknown(short(word)) }
    }

    /// A register to write to.
    pub fn destination(&mut self) -> Result<Register, PtxError> {
        let line = self.cursor.line();
        let word = self.cursor.word("a register")?;
        match self.find(word) {
            Some(Symbol::Register(register, _)) => Ok(register),
            _ => Err(self.unknown(word, line)),
        }
    }

    /// A register to write to, or `_`.
    pub fn optional_destination(&mut self) -> Result<Option<Register>, PtxError> {
        if self.cursor.take_word("_") { Ok(None) } else { self.destination().map(Some) }
    }

    /// `{a, b}` or one register.
    pub fn destinations(&mut self) -> Result<Box<[Option<Register>]>, PtxError> {
        let mut list = Vec::new();
        if !self.cursor.take_mark('{') {
            return Ok(Box::new([self.optional_destination()?]));
        }
        loop {
            list.push(self.optional_destination()?);
            if !self.cursor.take_mark(',') {
                break;
            }
        }
        self.cursor.mark('}', "}")?;
        Ok(list.into())
    }

    /// A source of a type.
    pub fn operand(&mut self, ty: Type) -> Result<Operand, PtxError> {
        let line = self.cursor.line();
        let negative = self.cursor.take_mark('-');
        let word = self.cursor.word("a register or a number")?;
        if negative || word.starts_with(|c: char| c.is_ascii_digit()) {
            return literal(word, negative, ty)
                .map(Operand::Immediate)
                .ok_or_else(|| PtxError { line, fault: PtxFault::Number(short(word)) });
        }
        match self.find(word) {
            Some(Symbol::Register(register, _)) => Ok(Operand::Register(register)),
            Some(Symbol::Shared(offset) | Symbol::Local(offset) | Symbol::Parameter(offset)) => {
                Ok(Operand::Immediate(offset.into()))
            }
            Some(Symbol::DynamicShared) => Ok(Operand::Special(Special::DynamicShared)),
            Some(Symbol::Variable(index)) => Ok(Operand::Variable(index)),
            None if word == "WARP_SZ" => Ok(Operand::Immediate(32)),
            None => special(word).map(Operand::Special).ok_or_else(|| self.unknown(word, line)),
        }
    }

    /// `{a, b}` or one source.
    pub fn operands(&mut self, ty: Type) -> Result<Box<[Operand]>, PtxError> {
        let mut list = Vec::new();
        if !self.cursor.take_mark('{') {
            return Ok(Box::new([self.operand(ty)?]));
        }
        loop {
            list.push(self.operand(ty)?);
            if !self.cursor.take_mark(',') {
                break;
            }
        }
        self.cursor.mark('}', "}")?;
        Ok(list.into())
    }

    /// A predicate, perhaps with `!` in front.
    pub fn predicate(&mut self) -> Result<(Operand, bool), PtxError> {
        let negated = self.cursor.take_mark('!');
        Ok((self.operand(Type::Pred)?, negated))
    }

    /// `[base+offset]`.
    pub fn address(&mut self, space: Space) -> Result<Address, PtxError> {
        self.cursor.mark('[', "an address in brackets")?;
        let base = self.operand(Type::U64)?;
        let mut offset = 0;
        let (plus, minus) = (self.cursor.take_mark('+'), self.cursor.take_mark('-'));
        if plus || minus {
            offset = self.cursor.number("an offset")? as i64;
            if minus {
                offset = offset.wrapping_neg();
            }
        }
        self.cursor.mark(']', "]")?;
        Ok(Address { space, base, offset })
    }

    /// The comma between operands.
    pub fn comma(&mut self) -> Result<(), PtxError> {
        self.cursor.mark(',', ", and another operand")
    }

    /// A branch to a label that may come later.
    pub fn branch(&mut self) -> Result<Operation, PtxError> {
        let line = self.cursor.line();
        let label = self.cursor.word("a label")?;
        self.pending.push((self.code.len(), label, line));
        Ok(Operation::Branch { target: 0 })
    }
}

fn special(word: &str) -> Option<Special> {
    let axis = |text: &str| match text {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    Some(match word {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%lanemask_eq" => Special::LaneMask(LaneOrder::Eq),
        "%lanemask_le" => Special::LaneMask(LaneOrder::Le),
        "%lanemask_lt" => Special::LaneMask(LaneOrder::Lt),
        "%lanemask_ge" => Special::LaneMask(LaneOrder::Ge),
        "%lanemask_gt" => Special::LaneMask(LaneOrder::Gt),
        "%clock" | "%clock64" => Special::Clock,
        "%dynamic_smem_size" => Special::DynamicSharedSize,
        _ => match word.split_once('.')? {
            ("%tid", part) => Special::Tid(axis(part)?),
            ("%ntid", part) => Special::Ntid(axis(part)?),
            ("%ctaid", part) => Special::Ctaid(axis(part)?),
            ("%nctaid", part) => Special::Nctaid(axis(part)?),
            _ => return None,
        },
    })
}
