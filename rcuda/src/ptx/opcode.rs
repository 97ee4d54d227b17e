//! What each opcode means: its suffixes and its operands.
//!
//! A suffix that nobody took makes the instruction an unsupported one: nothing is ever silently ignored that
//! could change a result.

use super::{
    PtxError,
    instruction::{
        Atomic, Binary, Compare, Finish, Join, Operand, Operation, Rounding, Shuffle, Space, Ternary, Type,
        Unary, Vote,
    },
    lexer::Kind,
    statement::Body,
    suffix::Opcode,
};

const BINARY: [(&str, Binary); 12] = [
    ("add", Binary::Add),
    ("sub", Binary::Sub),
    ("mul", Binary::Mul),
    ("div", Binary::Div),
    ("rem", Binary::Rem),
    ("min", Binary::Min),
    ("max", Binary::Max),
    ("and", Binary::And),
    ("or", Binary::Or),
    ("xor", Binary::Xor),
    ("shl", Binary::Shl),
    ("shr", Binary::Shr),
];

const UNARY: [(&str, Unary); 14] = [
    ("not", Unary::Not),
    ("cnot", Unary::CNot),
    ("neg", Unary::Neg),
    ("abs", Unary::Abs),
    ("popc", Unary::Popc),
    ("clz", Unary::Clz),
    ("brev", Unary::Brev),
    ("sqrt", Unary::Sqrt),
    ("rsqrt", Unary::Rsqrt),
    ("rcp", Unary::Rcp),
    ("sin", Unary::Sin),
    ("cos", Unary::Cos),
    ("ex2", Unary::Ex2),
    ("lg2", Unary::Lg2),
];

const COMPARE: [(&str, Compare); 18] = [
    ("eq", Compare::Eq),
    ("ne", Compare::Ne),
    ("lt", Compare::Lt),
    ("le", Compare::Le),
    ("gt", Compare::Gt),
    ("ge", Compare::Ge),
    ("lo", Compare::Lt),
    ("ls", Compare::Le),
    ("hi", Compare::Gt),
    ("hs", Compare::Ge),
    ("equ", Compare::Equ),
    ("neu", Compare::Neu),
    ("ltu", Compare::Ltu),
    ("leu", Compare::Leu),
    ("gtu", Compare::Gtu),
    ("geu", Compare::Geu),
    ("num", Compare::Num),
    ("nan", Compare::Nan),
];

const SPACES: [(&str, Space); 5] = [
    ("global", Space::Global),
    ("const", Space::Global),
    ("shared", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Parameter),
];

const ATOMICS: [(&str, Atomic); 10] = [
    ("add", Atomic::Add),
    ("min", Atomic::Min),
    ("max", Atomic::Max),
    ("and", Atomic::And),
    ("or", Atomic::Or),
    ("xor", Atomic::Xor),
    ("exch", Atomic::Exch),
    ("cas", Atomic::Cas),
    ("inc", Atomic::Inc),
    ("dec", Atomic::Dec),
];

/// Memory order and cache hints: one thread runs at a time, in program order, without a cache.
const MEMORY_HINTS: [&str; 20] = [
    "volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "nc", "ca", "cg",
    "cs", "lu", "cv", "wb", "wt", "mmio", "cluster", "sc",
];

impl Body<'_, '_> {
    /// Reads one instruction after its guard, up to its `;`.
    pub fn operation(&mut self) -> Result<Operation, PtxError> {
        let line = self.cursor.line();
        let text = self.cursor.word("an instruction")?;
        let (name, mut opcode) = Opcode::new(text, line);
        let op = &mut opcode;
        match name {
            "mov" => self.move_operation(op),
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr" => {
                self.binary(name, op)
            }
            "not" | "cnot" | "neg" | "abs" | "popc" | "clz" | "brev" | "sqrt" | "rsqrt" | "rcp" | "sin"
            | "cos" | "ex2" | "lg2" => self.unary(name, op),
            "mad" | "fma" | "bfe" => self.ternary(name, op),
            "setp" => self.setp(op),
            "selp" => {
                let ty = op.ty()?;
                op.end()?;
                let d = self.destination()?;
                self.comma()?;
                let a = self.operand(ty)?;
                self.comma()?;
                let b = self.operand(ty)?;
                self.comma()?;
                let p = self.operand(Type::Pred)?;
                Ok(Operation::Select { d, a, b, p })
            }
            "cvt" => self.convert(op),
            "cvta" => {
                let to_generic = !op.take("to");
                let space = op.choose(&SPACES).ok_or_else(|| op.unsupported())?;
                let ty = op.ty_where(|ty| matches!(ty, Type::U32 | Type::U64))?;
                op.end()?;
                let d = self.destination()?;
                self.comma()?;
                Ok(Operation::ConvertAddress { d, a: self.operand(ty)?, space, to_generic })
            }
            "ld" | "ldu" | "st" => self.memory(name, op),
            "atom" | "red" => self.atomic(name, op),
            "bra" => {
                op.take("uni");
                op.end()?;
                self.branch()
            }
            "bar" | "barrier" => self.barrier(op),
            "shfl" => self.shuffle(op),
            "vote" => self.vote(op),
            "membar" | "fence" => {
                op.skip(&MEMORY_HINTS);
                op.skip(&["gl"]);
                op.end()?;
                Ok(Operation::Nothing)
            }
            "ret" | "exit" => {
                op.take("uni");
                op.end()?;
                Ok(Operation::Exit)
            }
            "trap" => {
                op.end()?;
                Ok(Operation::Trap)
            }
            _ => Err(op.unsupported()),
        }
    }

    fn move_operation(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let ty = op.ty()?;
        op.end()?;
        let part = |count: usize| match (ty.bits(), count) {
            (bits @ (32 | 64), 2) | (bits @ 64, 4) => Ok(bits / count as u32),
            _ => Err(op.unsupported()),
        };
        if self.cursor.peek() == Some(Kind::Mark('{')) {
            let parts = self.destinations()?;
            let bits = part(parts.len())?;
            self.comma()?;
            return Ok(Operation::Unpack { parts, a: self.operand(ty)?, bits });
        }
        let d = self.destination()?;
        self.comma()?;
        if self.cursor.peek() == Some(Kind::Mark('{')) {
            let parts = self.operands(Type::B32)?;
            let bits = part(parts.len())?;
            return Ok(Operation::Pack { d, parts, bits });
        }
        Ok(Operation::Move { d, a: self.operand(ty)? })
    }

    fn binary(&mut self, name: &str, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let mut binary =
            *BINARY.iter().find(|(n, _)| *n == name).map(|(_, b)| b).ok_or_else(|| op.unsupported())?;
        let finish = op.finish();
        let mode = op.choose(&[("lo", Binary::Mul), ("hi", Binary::MulHi), ("wide", Binary::MulWide)]);
        let exact = op.take("rn");
        let approximate = op.take("approx") || op.take("full");
        let ty = op.ty()?;
        op.end()?;
        let fits = match binary {
            Binary::Add | Binary::Sub => {
                ty.bits() > 8
                    && (!exact || ty.is_float())
                    && (!finish.saturate || ty.is_float() || ty == Type::S32)
                    && !matches!(ty, Type::B16 | Type::B32 | Type::B64)
            }
            Binary::Mul if ty.is_float() => true,
            Binary::Mul => !exact && !finish.saturate && mode.is_some() && ty.bits() > 8,
            Binary::Div => approximate != exact || !ty.is_float(),
            Binary::Rem => !ty.is_float(),
            Binary::Min | Binary::Max => ty.bits() > 8,
            Binary::And | Binary::Or | Binary::Xor => !ty.is_float(),
            Binary::Shl | Binary::Shr => !ty.is_float() && ty.bits() > 8,
            Binary::MulHi | Binary::MulWide => false,
        };
        let multiplies = binary == Binary::Mul && !ty.is_float();
        if !fits
            || mode.is_some() != multiplies
            || (approximate && binary != Binary::Div)
            || (finish.flush && ty != Type::F32)
            || (mode == Some(Binary::MulWide) && ty.bits() > 32)
        {
            return Err(op.unsupported());
        }
        binary = mode.unwrap_or(binary);
        let d = self.destination()?;
        self.comma()?;
        let a = self.operand(ty)?;
        self.comma()?;
        let b = self.operand(if matches!(binary, Binary::Shl | Binary::Shr) { Type::U32 } else { ty })?;
        Ok(Operation::Binary { op: binary, ty, d, a, b, finish })
    }

    fn unary(&mut self, name: &str, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let unary =
            *UNARY.iter().find(|(n, _)| *n == name).map(|(_, u)| u).ok_or_else(|| op.unsupported())?;
        let finish = Finish { flush: op.take("ftz"), saturate: false };
        let rounded = op.take("rn") || op.take("approx");
        let ty = op.ty()?;
        op.end()?;
        let fits = match unary {
            Unary::Not | Unary::CNot => !rounded && !ty.is_float(),
            Unary::Neg | Unary::Abs => !rounded && (ty.is_float() || ty.is_signed()),
            Unary::Popc | Unary::Clz | Unary::Brev => !rounded && matches!(ty, Type::B32 | Type::B64),
            Unary::Sqrt | Unary::Rcp | Unary::Rsqrt => rounded && ty.is_float(),
            Unary::Sin | Unary::Cos | Unary::Ex2 | Unary::Lg2 => rounded && ty == Type::F32,
        };
        if !fits || (finish.flush && ty != Type::F32) {
            return Err(op.unsupported());
        }
        let d = self.destination()?;
        self.comma()?;
        Ok(Operation::Unary { op: unary, ty, d, a: self.operand(ty)?, finish })
    }

    fn ternary(&mut self, name: &str, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let finish = op.finish();
        let mode = op.choose(&[("lo", Ternary::MadLo), ("hi", Ternary::MadHi), ("wide", Ternary::MadWide)]);
        let exact = op.take("rn");
        let ty = op.ty()?;
        op.end()?;
        let (ternary, fits) = match (name, mode) {
            ("bfe", None) => {
                (Ternary::Bfe, !exact && matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64))
            }
            ("mad", Some(Ternary::MadWide)) => (Ternary::MadWide, matches!(ty.bits(), 16 | 32)),
            ("mad", Some(mode)) => (mode, !ty.is_float() && ty.bits() >= 16),
            (_, None) => (Ternary::Fma, ty.is_float() && exact),
            _ => return Err(op.unsupported()),
        };
        let is_float = ternary == Ternary::Fma;
        if !fits
            || (!is_float && (exact || finish != Finish::default() || ty.is_float()))
            || (finish.flush && ty != Type::F32)
        {
            return Err(op.unsupported());
        }
        let d = self.destination()?;
        self.comma()?;
        let a = self.operand(ty)?;
        self.comma()?;
        let b = self.operand(if ternary == Ternary::Bfe { Type::U32 } else { ty })?;
        self.comma()?;
        let c = self.operand(match (ternary, ty) {
            (Ternary::MadWide | Ternary::Bfe, _) => Type::U64,
            _ => ty,
        })?;
        Ok(Operation::Ternary { op: ternary, ty, d, a, b, c, finish })
    }

    fn setp(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let compare = op.choose(&COMPARE).ok_or_else(|| op.unsupported())?;
        let join =
            op.choose(&[("and", Join::And), ("or", Join::Or), ("xor", Join::Xor)]).unwrap_or(Join::None);
        let flush = op.take("ftz");
        let ty = op.ty()?;
        op.end()?;
        let unordered = !matches!(
            compare,
            Compare::Eq | Compare::Ne | Compare::Lt | Compare::Le | Compare::Gt | Compare::Ge
        );
        if (unordered && !ty.is_float()) || (flush && ty != Type::F32) {
            return Err(op.unsupported());
        }
        let d = self.optional_destination()?;
        let inverse = if self.cursor.take_mark('|') { self.optional_destination()? } else { None };
        self.comma()?;
        let a = self.operand(ty)?;
        self.comma()?;
        let b = self.operand(ty)?;
        let with = if join == Join::None {
            (Operand::Immediate(0), false)
        } else {
            self.comma()?;
            self.predicate()?
        };
        Ok(Operation::Compare { compare, ty, flush, d, inverse, a, b, join, with })
    }

    fn convert(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let finish = op.finish();
        let integral = op.choose(&[
            ("rni", Rounding::Nearest),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ]);
        let nearest = op.take("rn");
        let (to, from) = (op.ty()?, op.ty()?);
        op.end()?;
        let fits = match (to.is_float(), from.is_float()) {
            (false, true) => integral.is_some() && !nearest,
            (true, true) if to.bits() < from.bits() => nearest && integral.is_none(),
            (true, true) => !nearest && (to == from || integral.is_none()),
            (true, false) => nearest && integral.is_none(),
            (false, false) => !nearest && integral.is_none(),
        };
        if !fits
            || to == Type::Pred
            || from == Type::Pred
            || (finish.flush && to != Type::F32 && from != Type::F32)
        {
            return Err(op.unsupported());
        }
        let d = self.destination()?;
        self.comma()?;
        let rounding = integral.unwrap_or(Rounding::Plain);
        Ok(Operation::Convert { to, from, rounding, finish, d, a: self.operand(from)? })
    }

    fn memory(&mut self, name: &str, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        op.skip(&MEMORY_HINTS);
        let space = op.choose(&SPACES).unwrap_or(Space::Generic);
        let width = op.choose(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = op.ty_where(|ty| ty != Type::Pred)?;
        op.end()?;
        if name == "st" {
            let to = self.address(space)?;
            self.comma()?;
            let a = self.operands(ty)?;
            if a.len() != width || space == Space::Parameter {
                return Err(op.unsupported());
            }
            return Ok(Operation::Store { ty, a, to });
        }
        let d = self.destinations()?;
        if d.len() != width {
            return Err(op.unsupported());
        }
        self.comma()?;
        Ok(Operation::Load { ty, d, from: self.address(space)? })
    }

    fn atomic(&mut self, name: &str, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        op.skip(&MEMORY_HINTS);
        let space = op.choose(&SPACES).unwrap_or(Space::Generic);
        let atomic = op.choose(&ATOMICS).ok_or_else(|| op.unsupported())?;
        let ty = op.ty()?;
        op.end()?;
        let fits = match atomic {
            Atomic::Add => !matches!(ty, Type::B32 | Type::B64),
            Atomic::Min | Atomic::Max => !ty.is_float(),
            Atomic::Inc | Atomic::Dec => ty == Type::U32,
            _ => matches!(ty, Type::B32 | Type::B64 | Type::U32 | Type::U64 | Type::S32),
        };
        if !fits || ty.bits() < 32 || matches!(space, Space::Local | Space::Parameter) {
            return Err(op.unsupported());
        }
        let d = if name == "atom" {
            let d = self.optional_destination()?;
            self.comma()?;
            d
        } else {
            None
        };
        let at = self.address(space)?;
        self.comma()?;
        let b = self.operand(ty)?;
        let c = if atomic == Atomic::Cas {
            self.comma()?;
            self.operand(ty)?
        } else {
            Operand::Immediate(0)
        };
        Ok(Operation::Atomic { op: atomic, ty, d, at, b, c })
    }

    fn barrier(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        if op.suffixes == ["warp", "sync"] {
            return Ok(Operation::WarpBarrier { mask: self.operand(Type::B32)? });
        }
        op.skip(&["cta", "aligned"]);
        if !op.take("sync") {
            return Err(op.unsupported());
        }
        op.end()?;
        let id = self.operand(Type::U32)?;
        let threads = if self.cursor.take_mark(',') { Some(self.operand(Type::U32)?) } else { None };
        Ok(Operation::Barrier { id, threads })
    }

    fn shuffle(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let how = op.choose(&[
            ("up", Shuffle::Up),
            ("down", Shuffle::Down),
            ("bfly", Shuffle::Butterfly),
            ("idx", Shuffle::Index),
        ]);
        let (true, Some(how), Type::B32) = (op.take("sync"), how, op.ty()?) else {
            return Err(op.unsupported());
        };
        op.end()?;
        let d = self.destination()?;
        let valid = if self.cursor.take_mark('|') { self.optional_destination()? } else { None };
        self.comma()?;
        let a = self.operand(Type::B32)?;
        self.comma()?;
        let b = self.operand(Type::B32)?;
        self.comma()?;
        let c = self.operand(Type::B32)?;
        self.comma()?;
        Ok(Operation::Shuffle { how, d, valid, a, b, c, mask: self.operand(Type::B32)? })
    }

    fn vote(&mut self, op: &mut Opcode<'_>) -> Result<Operation, PtxError> {
        let vote = op.choose(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
            ("ballot", Vote::Ballot),
        ]);
        let (true, Some(vote)) = (op.take("sync"), vote) else { return Err(op.unsupported()) };
        if op.ty()? != if vote == Vote::Ballot { Type::B32 } else { Type::Pred } {
            return Err(op.unsupported());
        }
        op.end()?;
        let d = self.destination()?;
        self.comma()?;
        let (a, negate) = self.predicate()?;
        self.comma()?;
        Ok(Operation::Vote { vote, d, a, negate, mask: self.operand(Type::B32)? })
    }
}
