//! Instructions after parsing: registers are numbers, branch targets are indices, immediates are bits.

/// Register number inside its kernel.
pub type Register = u32;

/// Types of operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Type {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    B32,
    U32,
    S32,
    F32,
    B64,
    U64,
    S64,
    F64,
}

impl Type {
    /// From its PTX name without the dot.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" => Self::B16,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "b32" => Self::B32,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "f32" => Self::F32,
            "b64" => Self::B64,
            "u64" => Self::U64,
            "s64" => Self::S64,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Width.
    pub fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    /// Bytes in memory.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Floating point.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// Signed integer.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

/// State spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Device memory; `.const` lives there too.
    Global,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Parameter block.
    Parameter,
    /// The address says which.
    Generic,
}

/// Read-only registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Thread in its block, axis 0 to 2.
    Tid(u8),
    /// Block size.
    Ntid(u8),
    /// Block in the grid.
    Ctaid(u8),
    /// Grid size.
    Nctaid(u8),
    /// Lane in the warp.
    LaneId,
    /// Warp in the block.
    WarpId,
    /// Warps of the block.
    NWarpId,
    /// Bit masks of lanes compared with this one: equal, less or equal, less, greater or equal, greater.
    LaneMask(LaneOrder),
    /// Instructions that the block ran so far.
    Clock,
    /// Bytes of dynamic shared memory.
    DynamicSharedSize,
    /// Where dynamic shared memory begins.
    DynamicShared,
}

/// Which lanes a lane mask holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum LaneOrder {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// A source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operand {
    /// Register.
    Register(Register),
    /// Bits.
    Immediate(u64),
    /// Special register.
    Special(Special),
    /// Address of the module's variable with this index.
    Variable(u32),
}

/// A memory address.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Address {
    /// State space.
    pub space: Space,
    /// Base.
    pub base: Operand,
    /// Bytes added.
    pub offset: i64,
}

/// Two-operand arithmetic and logic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

/// Three-operand arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Ternary {
    MadLo,
    MadHi,
    MadWide,
    Fma,
    Bfe,
}

/// One-operand arithmetic and logic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Unary {
    Not,
    CNot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    Sqrt,
    Rsqrt,
    Rcp,
    Sin,
    Cos,
    Ex2,
    Lg2,
}

/// How arithmetic ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Finish {
    /// Flush subnormal `f32` inputs and results to zero.
    pub flush: bool,
    /// Clamp: floats to 0..1, integers to the range of their type.
    pub saturate: bool,
}

/// Comparisons; the last eight are for floats. An unordered one is true when an operand is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Rounding to an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// None asked for: the target's own.
    Plain,
    /// Ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Down.
    Down,
    /// Up.
    Up,
}

/// Read-modify-write operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Which lane `shfl` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// Lane minus b.
    Up,
    /// Lane plus b.
    Down,
    /// Lane xor b.
    Butterfly,
    /// Lane b.
    Index,
}

/// What `vote` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// True in all lanes.
    All,
    /// True in one lane at least.
    Any,
    /// The same in all lanes.
    Uniform,
    /// Bit mask of the lanes where it is true.
    Ballot,
}

/// How `setp` joins its result with another predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Not at all.
    None,
    /// And.
    And,
    /// Or.
    Or,
    /// Exclusive or.
    Xor,
}

/// What an instruction does.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "d is the destination, a, b, c are sources, in PTX's order")]
pub enum Operation {
    Move {
        d: Register,
        a: Operand,
    },
    /// `mov.b64 d, {low, high}`.
    Pack {
        d: Register,
        parts: Box<[Operand]>,
        bits: u32,
    },
    /// `mov.b64 {low, high}, a`.
    Unpack {
        parts: Box<[Option<Register>]>,
        a: Operand,
        bits: u32,
    },
    Unary {
        op: Unary,
        ty: Type,
        d: Register,
        a: Operand,
        finish: Finish,
    },
    Binary {
        op: Binary,
        ty: Type,
        d: Register,
        a: Operand,
        b: Operand,
        finish: Finish,
    },
    Ternary {
        op: Ternary,
        ty: Type,
        d: Register,
        a: Operand,
        b: Operand,
        c: Operand,
        finish: Finish,
    },
    Compare {
        compare: Compare,
        ty: Type,
        flush: bool,
        d: Option<Register>,
        /// Gets the opposite.
        inverse: Option<Register>,
        a: Operand,
        b: Operand,
        join: Join,
        /// The other predicate and whether it is negated.
        with: (Operand, bool),
    },
    Select {
        d: Register,
        a: Operand,
        b: Operand,
        p: Operand,
    },
    Convert {
        to: Type,
        from: Type,
        rounding: Rounding,
        finish: Finish,
        d: Register,
        a: Operand,
    },
    /// Adds the base of a state space to make an address generic, or takes it away.
    ConvertAddress {
        d: Register,
        a: Operand,
        space: Space,
        to_generic: bool,
    },
    Load {
        ty: Type,
        d: Box<[Option<Register>]>,
        from: Address,
    },
    Store {
        ty: Type,
        a: Box<[Operand]>,
        to: Address,
    },
    Atomic {
        op: Atomic,
        ty: Type,
        d: Option<Register>,
        at: Address,
        b: Operand,
        c: Operand,
    },
    Branch {
        target: u32,
    },
    /// Waits for the block's threads, or for so many of them.
    Barrier {
        id: Operand,
        threads: Option<Operand>,
    },
    /// Waits for the lanes of the mask.
    WarpBarrier {
        mask: Operand,
    },
    Shuffle {
        how: Shuffle,
        d: Register,
        /// True when the source lane was in range.
        valid: Option<Register>,
        a: Operand,
        b: Operand,
        c: Operand,
        mask: Operand,
    },
    Vote {
        vote: Vote,
        d: Register,
        a: Operand,
        negate: bool,
        mask: Operand,
    },
    /// Fences order nothing here: one thread runs at a time.
    Nothing,
    Exit,
    Trap,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// Line in the text.
    pub line: u32,
    /// Runs only if this predicate is true; false if the flag is set.
    pub guard: Option<(Register, bool)>,
    /// What it does.
    pub operation: Operation,
}
