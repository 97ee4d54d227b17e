//! PTX text, as far as the software device runs it (NVIDIA's "Parallel Thread Execution ISA").
//!
//! ```text
//! text --lexer--> tokens with lines --parser--> Module { variables, kernels { parameters, Vec<Instruction> } }
//! ```
//!
//! What is not supported is refused when the module is loaded, with the line and the instruction; a module that
//! loads never meets an unknown instruction later. [`signature`] reads only the kernels' parameter lists, for
//! devices that bring their own compiler.

pub mod instruction;
pub mod lexer;
mod opcode;
pub mod parser;
pub mod signature;
mod statement;
mod suffix;

use instruction::Instruction;
use thiserror::Error;

/// Why a text is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("PTX line {line}: {fault}")]
pub struct PtxError {
    /// 1-based.
    pub line: u32,
    /// What is wrong.
    pub fault: PtxFault,
}

/// What is wrong at a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PtxFault {
    /// The text breaks off or has something unexpected.
    #[error("expected {expected}, found {found}")]
    Syntax {
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A real instruction perhaps, but not of the subset.
    #[error("the software device does not support the instruction `{0}`")]
    Instruction(String),
    /// A directive outside the subset.
    #[error("the software device does not support the directive `{0}`")]
    Directive(String),
    /// A register, label or variable that is not declared.
    #[error("`{0}` is not declared")]
    Unknown(String),
    /// Declared twice.
    #[error("`{0}` is declared twice")]
    Twice(String),
    /// A number that can't be read or does not fit.
    #[error("`{0}` is no number that fits here")]
    Number(String),
    /// More than the subset allows.
    #[error("{what}: {found} exceed the limit of {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many are allowed.
        limit: u64,
    },
}

/// A parsed module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Module {
    /// Variables in device memory, in order; instructions name them by index.
    pub variables: Vec<Variable>,
    /// Kernels, in order.
    pub kernels: Vec<KernelCode>,
}

/// A `.global` or `.const` variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Initial value; zero beyond its end.
    pub initial: Vec<u8>,
}

/// One parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Name.
    pub name: String,
    /// Offset in the parameter block.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// One kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelCode {
    /// Entry name.
    pub name: String,
    /// Parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Bytes of the parameter block.
    pub parameter_bytes: u32,
    /// Bytes of static shared memory; dynamic shared memory follows.
    pub shared_bytes: u32,
    /// Bytes of local memory of one thread.
    pub local_bytes: u32,
    /// Registers of one thread.
    pub registers: u32,
    /// Most threads of a block (`.maxntid`, `.reqntid`), if the kernel says so.
    pub max_threads: Option<u64>,
    /// The code.
    pub code: Vec<Instruction>,
}
