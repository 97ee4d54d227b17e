//! Requests and replies, at the level of the CUDA driver API.
//!
//! A *posted* request gets no reply. Its error, if any, is kept by the worker and given to the next called
//! request that waits for the device ([`Request::Synchronize`], [`Request::Read`], ...). All others are
//! *called*: one reply each, in order.

pub use super::codec::Bytes;
use crate::message;

/// Most bytes in one frame's body. Copies travel in pieces of [`PIECE`].
pub const MAX_FRAME: usize = PIECE + 64 * 1024;
/// Bytes of device memory in one copy request.
pub const PIECE: usize = 8 * 1024 * 1024;
/// Most bytes of a module's text.
pub const MAX_MODULE: usize = PIECE;
/// Most bytes of a kernel's parameters; CUDA's own limit is 4 KiB, 32,764 bytes on new devices.
pub const MAX_PARAMETERS: usize = 32 * 1024;

/// A device's number, from 0.
pub type Ordinal = u32;
/// An address in device memory. Means nothing outside the session that got it.
pub type DeviceAddress = u64;
/// Names a module, stream or event of one session. 0 is the default stream.
pub type Handle = u64;

message! {
    /// One device, as the client may use it.
    struct DeviceInfo {
        /// Product name.
        name: String,
        /// It is the software device.
        software: bool,
        /// Compute capability: major and minor.
        capability: [u32; 2],
        /// Bytes that this client may use in all.
        memory_total: u64,
        /// Bytes that the device has, whoever uses them.
        device_total: u64,
        /// Bytes that all clients use together.
        device_used: u64,
        /// Opaque identity.
        uuid: [u8; 16],
        /// Values by `CUdevice_attribute` number, as pairs.
        attributes: Vec<[i32; 2]>,
    }
}

message! {
    /// An error: a `CUresult` number and a sentence.
    struct Failure {
        /// `CUresult`.
        code: u32,
        /// What is wrong.
        message: String,
    }
}

message! {
    /// A kernel of a loaded module.
    struct Kernel {
        /// Entry name.
        name: String,
        /// Offset and size of each parameter in the parameter block.
        parameters: Vec<[u32; 2]>,
    }
}

message! {
    /// A variable in device memory that a module defines.
    struct Symbol {
        /// Name.
        name: String,
        /// Where.
        address: DeviceAddress,
        /// Bytes.
        bytes: u64,
    }
}

message! {
    /// One kernel launch.
    struct Launch {
        /// Device.
        device: Ordinal,
        /// Module of the kernel.
        module: Handle,
        /// Place of the kernel in the module's list.
        kernel: u32,
        /// Blocks in x, y, z.
        grid: [u32; 3],
        /// Threads of a block in x, y, z.
        block: [u32; 3],
        /// Bytes of dynamic shared memory.
        shared_bytes: u32,
        /// Stream.
        stream: Handle,
        /// Parameter block, laid out as the module's reply said.
        parameters: Bytes,
    }
}

message! {
    /// What a client asks.
    enum Request {
        /// Devices, their attributes and memory, in one reply.
        1 = Init {},
        /// Memory that this client may use and has left.
        2 = MemoryInfo {
            /// Device.
            device: Ordinal,
        },
        /// Allocates device memory.
        3 = Allocate {
            /// Device.
            device: Ordinal,
            /// Size.
            bytes: u64,
        },
        /// Frees what `Allocate` gave.
        4 = Free {
            /// Device.
            device: Ordinal,
            /// Start of the allocation.
            address: DeviceAddress,
        },
        /// Copies to the device and waits for it.
        5 = Write {
            /// Device.
            device: Ordinal,
            /// Destination.
            address: DeviceAddress,
            /// Stream.
            stream: Handle,
            /// What to write, at most [`PIECE`] bytes.
            data: Bytes,
        },
        /// Posted: copies to the device in stream order.
        6 = PostWrite {
            /// Device.
            device: Ordinal,
            /// Destination.
            address: DeviceAddress,
            /// Stream.
            stream: Handle,
            /// What to write, at most [`PIECE`] bytes.
            data: Bytes,
        },
        /// Copies from the device, after all work of the stream.
        7 = Read {
            /// Device.
            device: Ordinal,
            /// Source.
            address: DeviceAddress,
            /// Stream.
            stream: Handle,
            /// At most [`PIECE`].
            bytes: u32,
        },
        /// Posted: copies inside the device; the two ranges may overlap only if equal.
        8 = Copy {
            /// Device.
            device: Ordinal,
            /// Destination.
            to: DeviceAddress,
            /// Source.
            from: DeviceAddress,
            /// Size.
            bytes: u64,
            /// Stream.
            stream: Handle,
        },
        /// Posted: fills with a repeated value.
        9 = Fill {
            /// Device.
            device: Ordinal,
            /// Destination.
            address: DeviceAddress,
            /// The value.
            value: u32,
            /// Bytes of the value: 1, 2 or 4.
            width: u8,
            /// How many values.
            count: u64,
            /// Stream.
            stream: Handle,
        },
        /// Loads a module from PTX text.
        10 = LoadModule {
            /// Device.
            device: Ordinal,
            /// The text, at most [`MAX_MODULE`] bytes.
            ptx: String,
        },
        /// Drops a module with its variables.
        11 = UnloadModule {
            /// Device.
            device: Ordinal,
            /// Module.
            module: Handle,
        },
        /// Posted: launches a kernel.
        12 = Launch {
            /// What and how.
            launch: Launch,
        },
        /// Waits for all work on a device.
        13 = Synchronize {
            /// Device.
            device: Ordinal,
        },
        /// Makes a stream.
        14 = CreateStream {
            /// Device.
            device: Ordinal,
        },
        /// Drops a stream after its work.
        15 = DestroyStream {
            /// Device.
            device: Ordinal,
            /// Stream.
            stream: Handle,
        },
        /// Waits for a stream.
        16 = SynchronizeStream {
            /// Device.
            device: Ordinal,
            /// Stream.
            stream: Handle,
        },
        /// Makes an event.
        17 = CreateEvent {
            /// Device.
            device: Ordinal,
        },
        /// Drops an event.
        18 = DestroyEvent {
            /// Device.
            device: Ordinal,
            /// Event.
            event: Handle,
        },
        /// Posted: the event is reached when the stream gets there.
        19 = RecordEvent {
            /// Device.
            device: Ordinal,
            /// Event.
            event: Handle,
            /// Stream.
            stream: Handle,
        },
        /// Waits for an event.
        20 = SynchronizeEvent {
            /// Device.
            device: Ordinal,
            /// Event.
            event: Handle,
        },
        /// Milliseconds between two events that were reached.
        21 = ElapsedTime {
            /// Device.
            device: Ordinal,
            /// The earlier one.
            start: Handle,
            /// The later one.
            end: Handle,
        },
        /// Whether all work of a stream is done, without waiting.
        22 = QueryStream {
            /// Device.
            device: Ordinal,
            /// Stream.
            stream: Handle,
        },
    }
}

message! {
    /// The answer to a called request.
    enum Reply {
        /// It did not work.
        0 = Failed {
            /// Why.
            failure: Failure,
        },
        /// It worked.
        1 = Done {},
        /// To `Init`.
        2 = Devices {
            /// By ordinal.
            devices: Vec<DeviceInfo>,
            /// Clients connected now, this one included.
            clients: u32,
        },
        /// To `MemoryInfo`.
        3 = Memory {
            /// Bytes left to this client.
            free: u64,
            /// Bytes that this client may use in all.
            total: u64,
        },
        /// To `Allocate`.
        4 = Address {
            /// Start.
            address: DeviceAddress,
        },
        /// To `Read`.
        5 = Data {
            /// Bytes read.
            data: Bytes,
        },
        /// To `LoadModule`.
        6 = Module {
            /// Its name from now on.
            module: Handle,
            /// Kernels with their parameter layouts.
            kernels: Vec<Kernel>,
            /// Variables.
            symbols: Vec<Symbol>,
        },
        /// To `CreateStream` and `CreateEvent`.
        7 = Created {
            /// Its name from now on.
            handle: Handle,
        },
        /// To `ElapsedTime`.
        8 = Elapsed {
            /// Milliseconds.
            milliseconds: f32,
        },
        /// To `QueryStream`.
        9 = Ready {
            /// All work is done.
            ready: bool,
        },
    }
}

impl Request {
    /// Gets no reply.
    pub fn is_posted(&self) -> bool {
        matches!(
            self,
            Self::PostWrite { .. }
                | Self::Copy { .. }
                | Self::Fill { .. }
                | Self::Launch { .. }
                | Self::RecordEvent { .. }
        )
    }
}
