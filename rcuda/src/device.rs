//! What a worker needs of a device, real or in software.

use crate::wire::message::{DeviceInfo, Failure, Kernel, Symbol};

/// Why a device refused. The numbers are those of the driver API's `CUresult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the driver API's own")]
pub enum Status {
    InvalidValue,
    OutOfMemory,
    NotInitialized,
    NoDevice,
    InvalidDevice,
    InvalidPtx,
    InvalidHandle,
    NotReady,
    IllegalAddress,
    LaunchOutOfResources,
    LaunchTimeout,
    MisalignedAddress,
    LaunchFailed,
    NotSupported,
    /// Any other that the driver knows.
    Other(u32),
}

impl Status {
    /// `CUresult`.
    pub fn code(self) -> u32 {
        match self {
            Self::InvalidValue => 1,
            Self::OutOfMemory => 2,
            Self::NotInitialized => 3,
            Self::NoDevice => 100,
            Self::InvalidDevice => 101,
            Self::InvalidPtx => 218,
            Self::InvalidHandle => 400,
            Self::NotReady => 600,
            Self::IllegalAddress => 700,
            Self::LaunchOutOfResources => 701,
            Self::LaunchTimeout => 702,
            Self::MisalignedAddress => 716,
            Self::LaunchFailed => 719,
            Self::NotSupported => 801,
            Self::Other(code) => code,
        }
    }

    /// The error ends the session: nothing on the device can be trusted or used any more.
    pub fn is_fatal(self) -> bool {
        matches!(self.code(), 700 | 702 | 710 | 714..=719)
    }
}

/// A device's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    /// Kind.
    pub status: Status,
    /// Sentence.
    pub message: String,
}

impl DeviceError {
    /// A refusal.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Failure { code: error.status.code(), message: error.message }
    }
}

/// Result of a device call.
pub type Outcome<T> = Result<T, DeviceError>;

/// A stream, event or module, as the device numbers it. Stream 0 is the default stream.
pub type Id = u64;

/// A module that a device has loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Its number.
    pub module: Id,
    /// Kernels.
    pub kernels: Vec<Kernel>,
    /// Variables.
    pub symbols: Vec<Symbol>,
}

/// A launch that was checked against the kernel's layout.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch<'p> {
    /// Module.
    pub module: Id,
    /// Kernel's place in the module.
    pub kernel: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Stream.
    pub stream: Id,
    /// Parameter block of the size that the layout gives.
    pub parameters: &'p [u8],
}

/// One device of one client. The worker has checked ownership, ranges and quotas before it calls.
pub trait Device {
    /// Name, capability, attributes. `memory_total` and `device_total` are both the device's size.
    fn info(&self) -> DeviceInfo;
    /// Bytes in use by everybody, where the device can tell.
    fn used(&self) -> Outcome<Option<u64>>;
    /// Allocates.
    fn allocate(&mut self, bytes: u64) -> Outcome<u64>;
    /// Frees what `allocate` gave.
    fn free(&mut self, address: u64) -> Outcome<()>;
    /// Copies to the device in stream order; `data` may be dropped afterwards.
    fn write(&mut self, address: u64, data: &[u8], stream: Id) -> Outcome<()>;
    /// Copies from the device after the stream's work.
    fn read(&mut self, address: u64, data: &mut [u8], stream: Id) -> Outcome<()>;
    /// Copies inside the device in stream order.
    fn copy(&mut self, to: u64, from: u64, bytes: u64, stream: Id) -> Outcome<()>;
    /// Fills with `count` values of `width` bytes (1, 2 or 4) in stream order.
    fn fill(&mut self, address: u64, value: u32, width: u8, count: u64, stream: Id) -> Outcome<()>;
    /// Bytes of device memory that a module's variables would take.
    fn module_bytes(&self, ptx: &str) -> Outcome<u64>;
    /// Loads a module.
    fn load(&mut self, ptx: &str) -> Outcome<Loaded>;
    /// Unloads it.
    fn unload(&mut self, module: Id) -> Outcome<()>;
    /// Launches a kernel in stream order.
    fn launch(&mut self, dispatch: Dispatch<'_>) -> Outcome<()>;
    /// Waits for everything.
    fn synchronize(&mut self) -> Outcome<()>;
    /// Makes a stream.
    fn create_stream(&mut self) -> Outcome<Id>;
    /// Drops it.
    fn destroy_stream(&mut self, stream: Id) -> Outcome<()>;
    /// Waits for it.
    fn synchronize_stream(&mut self, stream: Id) -> Outcome<()>;
    /// Whether its work is done.
    fn query_stream(&mut self, stream: Id) -> Outcome<bool>;
    /// Makes an event.
    fn create_event(&mut self) -> Outcome<Id>;
    /// Drops it.
    fn destroy_event(&mut self, event: Id) -> Outcome<()>;
    /// Marks a point in a stream.
    fn record_event(&mut self, event: Id, stream: Id) -> Outcome<()>;
    /// Waits for it.
    fn synchronize_event(&mut self, event: Id) -> Outcome<()>;
    /// Milliseconds between two points.
    fn elapsed(&mut self, start: Id, end: Id) -> Outcome<f32>;
}
