//! The client's end: what `rcuda-smi` and the guest libraries use.
//!
//! Requests that need no answer are posted. Their errors come with the next call that waits:
//! [`Client::synchronize`], [`Client::read`], [`Client::write`].

use thiserror::Error;

use crate::wire::{
    endpoint::{Connection, Endpoint},
    frame::{self, WireError},
    hello::Hello,
    message::{
        Bytes, DeviceAddress, DeviceInfo, Failure, Handle, Kernel, Launch, Ordinal, PIECE, Reply, Request,
        Symbol,
    },
};

/// Why a call did not work.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("connecting to {endpoint} failed; is rcuda-server running?")]
    Connect {
        /// Address.
        endpoint: Endpoint,
        /// Cause.
        source: std::io::Error,
    },
    /// The conversation ended.
    #[error("talking to the server failed")]
    Wire(#[from] WireError),
    /// The device or the server said no.
    #[error("{} (CUDA error {})", .0.message, .0.code)]
    Refused(Failure),
    /// The server answered something else.
    #[error("the server answered {0} to another question; this is a fault in one of the two programs")]
    Confused(&'static str),
    /// A kernel's arguments do not fit its layout.
    #[error("kernel {kernel} takes parameters of {wanted:?} bytes, not {given:?}")]
    Arguments {
        /// Kernel.
        kernel: String,
        /// Sizes of its layout.
        wanted: Vec<u32>,
        /// Sizes given.
        given: Vec<u32>,
    },
}

type Result<T> = std::result::Result<T, ClientError>;

/// A module on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// Its device.
    pub device: Ordinal,
    /// Its name at the server.
    pub handle: Handle,
    /// Kernels with layouts.
    pub kernels: Vec<Kernel>,
    /// Variables.
    pub symbols: Vec<Symbol>,
}

impl Module {
    /// A kernel's place in the list.
    pub fn kernel(&self, name: &str) -> Option<u32> {
        self.kernels.iter().position(|k| k.name == name).map(|at| at as u32)
    }
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Stream, 0 for the default.
    pub stream: Handle,
}

impl Shape {
    /// `blocks` blocks of `threads` threads in one dimension.
    pub fn line(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0, stream: 0 }
    }
}

/// One connection; the server keeps one worker for it.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    devices: Vec<DeviceInfo>,
    clients: u32,
}

impl Client {
    /// Connects, agrees on the protocol, and learns the devices.
    pub fn connect(endpoint: &Endpoint) -> Result<Self> {
        let mut connection = endpoint
            .connect()
            .map_err(|source| ClientError::Connect { endpoint: endpoint.clone(), source })?;
        // A server that is full says so and hangs up at once: its reason counts, not the broken pipe.
        let sent = frame::send_hello(&mut connection, &Hello::ours());
        let theirs = frame::receive_hello(&mut connection)?;
        theirs.check().map_err(WireError::Hello)?;
        sent?;
        let mut client = Self { connection, devices: Vec::new(), clients: 0 };
        client.refresh()?;
        Ok(client)
    }

    /// Asks for the devices again: memory in use and clients change.
    pub fn refresh(&mut self) -> Result<()> {
        match self.call(&Request::Init {})? {
            Reply::Devices { devices, clients } => {
                self.devices = devices;
                self.clients = clients;
                Ok(())
            }
            other => Err(ClientError::Confused(other.name())),
        }
    }

    /// Devices by ordinal, as they were at the last refresh.
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    /// Clients that were connected at the last refresh, this one included.
    pub fn clients(&self) -> u32 {
        self.clients
    }

    /// Sends a request that gets no reply.
    pub fn post(&mut self, request: &Request) -> Result<()> {
        debug_assert!(request.is_posted());
        Ok(frame::send(&mut self.connection, request)?)
    }

    /// Sends a request and waits for its reply; a refusal is an error.
    pub fn call(&mut self, request: &Request) -> Result<Reply> {
        debug_assert!(!request.is_posted());
        frame::send(&mut self.connection, request)?;
        match frame::receive(&mut self.connection)? {
            Reply::Failed { failure } => Err(ClientError::Refused(failure)),
            reply => Ok(reply),
        }
    }

    fn done(&mut self, request: &Request) -> Result<()> {
        match self.call(request)? {
            Reply::Done {} => Ok(()),
            other => Err(ClientError::Confused(other.name())),
        }
    }

    fn created(&mut self, request: &Request) -> Result<Handle> {
        match self.call(request)? {
            Reply::Created { handle } => Ok(handle),
            other => Err(ClientError::Confused(other.name())),
        }
    }

    /// Bytes free and in all, for this client.
    pub fn memory_info(&mut self, device: Ordinal) -> Result<(u64, u64)> {
        match self.call(&Request::MemoryInfo { device })? {
            Reply::Memory { free, total } => Ok((free, total)),
            other => Err(ClientError::Confused(other.name())),
        }
    }

    /// Allocates device memory.
    pub fn allocate(&mut self, device: Ordinal, bytes: u64) -> Result<DeviceAddress> {
        match self.call(&Request::Allocate { device, bytes })? {
            Reply::Address { address } => Ok(address),
            other => Err(ClientError::Confused(other.name())),
        }
    }

    /// Frees it.
    pub fn free(&mut self, device: Ordinal, address: DeviceAddress) -> Result<()> {
        self.done(&Request::Free { device, address })
    }

    /// Copies to the device and waits until the server has taken it over.
    pub fn write(
        &mut self,
        device: Ordinal,
        address: DeviceAddress,
        data: &[u8],
        stream: Handle,
    ) -> Result<()> {
        let last = data.len().saturating_sub(1) / PIECE;
        for (index, piece) in data.chunks(PIECE).enumerate() {
            let address = address.wrapping_add((index * PIECE) as u64);
            let data = Bytes(piece.to_vec());
            if index < last {
                self.post(&Request::PostWrite { device, address, stream, data })?;
            } else {
                self.done(&Request::Write { device, address, stream, data })?;
            }
        }
        Ok(())
    }

    /// Copies to the device without waiting for an answer.
    pub fn post_write(
        &mut self,
        device: Ordinal,
        address: DeviceAddress,
        data: &[u8],
        stream: Handle,
    ) -> Result<()> {
        for (index, piece) in data.chunks(PIECE).enumerate() {
            let address = address.wrapping_add((index * PIECE) as u64);
            self.post(&Request::PostWrite { device, address, stream, data: Bytes(piece.to_vec()) })?;
        }
        Ok(())
    }

    /// Copies from the device, after the stream's work.
    pub fn read(
        &mut self,
        device: Ordinal,
        address: DeviceAddress,
        data: &mut [u8],
        stream: Handle,
    ) -> Result<()> {
        for (index, piece) in data.chunks_mut(PIECE).enumerate() {
            let address = address.wrapping_add((index * PIECE) as u64);
            let request = Request::Read { device, address, stream, bytes: piece.len() as u32 };
            match self.call(&request)? {
                Reply::Data { data } if data.0.len() == piece.len() => piece.copy_from_slice(&data.0),
                other => return Err(ClientError::Confused(other.name())),
            }
        }
        Ok(())
    }

    /// Copies inside the device; posted.
    pub fn copy(
        &mut self,
        device: Ordinal,
        to: DeviceAddress,
        from: DeviceAddress,
        bytes: u64,
        stream: Handle,
    ) -> Result<()> {
        self.post(&Request::Copy { device, to, from, bytes, stream })
    }

    /// Fills with `count` values of `width` bytes; posted.
    pub fn fill(
        &mut self,
        device: Ordinal,
        address: DeviceAddress,
        value: u32,
        width: u8,
        count: u64,
        stream: Handle,
    ) -> Result<()> {
        self.post(&Request::Fill { device, address, value, width, count, stream })
    }

    /// Loads PTX text.
    pub fn load_module(&mut self, device: Ordinal, ptx: &str) -> Result<Module> {
        match self.call(&Request::LoadModule { device, ptx: ptx.to_owned() })? {
            Reply::Module { module, kernels, symbols } => {
                Ok(Module { device, handle: module, kernels, symbols })
            }
            other => Err(ClientError::Confused(other.name())),
        }
    }

    /// Drops a module.
    pub fn unload_module(&mut self, module: &Module) -> Result<()> {
        self.done(&Request::UnloadModule { device: module.device, module: module.handle })
    }

    /// Launches a kernel; posted. Each argument is the bytes of one parameter.
    pub fn launch(&mut self, module: &Module, kernel: u32, shape: Shape, arguments: &[&[u8]]) -> Result<()> {
        let layout = module.kernels.get(kernel as usize);
        let parameters = layout.map(|k| k.parameters.as_slice()).unwrap_or_default();
        let wanted: Vec<u32> = parameters.iter().map(|[_, size]| *size).collect();
        let given: Vec<u32> = arguments.iter().map(|a| a.len() as u32).collect();
        if wanted != given {
            let kernel = layout.map(|k| k.name.clone()).unwrap_or_default();
            return Err(ClientError::Arguments { kernel, wanted, given });
        }
        let size = parameters.iter().map(|[offset, size]| offset + size).max().unwrap_or(0);
        let mut block = vec![0; size as usize];
        for ([offset, size], argument) in parameters.iter().zip(arguments) {
            block[*offset as usize..(offset + size) as usize].copy_from_slice(argument);
        }
        let Shape { grid, block: threads, shared_bytes, stream } = shape;
        self.post(&Request::Launch {
            launch: Launch {
                device: module.device,
                module: module.handle,
                kernel,
                grid,
                block: threads,
                shared_bytes,
                stream,
                parameters: Bytes(block),
            },
        })
    }

    /// Waits for all work on a device.
    pub fn synchronize(&mut self, device: Ordinal) -> Result<()> {
        self.done(&Request::Synchronize { device })
    }

    /// Makes a stream.
    pub fn create_stream(&mut self, device: Ordinal) -> Result<Handle> {
        self.created(&Request::CreateStream { device })
    }

    /// Drops a stream.
    pub fn destroy_stream(&mut self, device: Ordinal, stream: Handle) -> Result<()> {
        self.done(&Request::DestroyStream { device, stream })
    }

    /// Waits for a stream.
    pub fn synchronize_stream(&mut self, device: Ordinal, stream: Handle) -> Result<()> {
        self.done(&Request::SynchronizeStream { device, stream })
    }

    /// Makes an event.
    pub fn create_event(&mut self, device: Ordinal) -> Result<Handle> {
        self.created(&Request::CreateEvent { device })
    }

    /// Drops an event.
    pub fn destroy_event(&mut self, device: Ordinal, event: Handle) -> Result<()> {
        self.done(&Request::DestroyEvent { device, event })
    }

    /// Marks a point in a stream; posted.
    pub fn record_event(&mut self, device: Ordinal, event: Handle, stream: Handle) -> Result<()> {
        self.post(&Request::RecordEvent { device, event, stream })
    }

    /// Waits for an event.
    pub fn synchronize_event(&mut self, device: Ordinal, event: Handle) -> Result<()> {
        self.done(&Request::SynchronizeEvent { device, event })
    }

    /// Milliseconds between two events.
    pub fn elapsed(&mut self, device: Ordinal, start: Handle, end: Handle) -> Result<f32> {
        match self.call(&Request::ElapsedTime { device, start, end })? {
            Reply::Elapsed { milliseconds } => Ok(milliseconds),
            other => Err(ClientError::Confused(other.name())),
        }
    }
}
