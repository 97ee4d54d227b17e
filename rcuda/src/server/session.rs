//! One client's conversation: requests in, replies out. Checks ownership, ranges and quotas, keeps the error of a
//! posted request until somebody waits, then hands the work to a [`Device`].
//!
//! ```text
//!   open --(posted request fails)--> open, with a pending error --(called request that waits)--> open
//!     \--(kernel faults)--> broken: every later request gets that error, as a CUDA context would
//! ```

use std::collections::BTreeMap;

use super::{
    handles::Handles,
    ledger::{DEVICES, Ledger},
    platform::{Platform, Source},
};
use crate::{
    device::{Device, DeviceError, Dispatch, Id, Outcome, Status},
    wire::message::{
        Bytes, DeviceInfo, Failure, Handle, Kernel, Launch, MAX_MODULE, MAX_PARAMETERS, Ordinal, PIECE,
        Reply, Request,
    },
};

/// Allocations are counted in units of this, as a device hands them out.
const UNIT: u64 = 512;
const MAX_ALLOCATIONS: usize = 65_536;
const MAX_MODULES: usize = 1024;
const MAX_STREAMS: usize = 1024;
const MAX_EVENTS: usize = 65_536;

/// What a client may use, and where it is written down.
#[derive(Debug)]
pub struct Account {
    /// Bytes of each device that this client may use; `None` for all.
    pub limit: Option<u64>,
    /// Shared with the other workers.
    pub ledger: Ledger,
    /// This worker's slot.
    pub slot: usize,
}

#[derive(Debug)]
struct Module {
    device: Ordinal,
    id: Id,
    kernels: Vec<Kernel>,
    /// Start addresses of its variables.
    variables: Vec<u64>,
}

struct Opened {
    device: Box<dyn Device>,
    info: DeviceInfo,
    used: u64,
    /// Start and bytes of what the client owns.
    ranges: BTreeMap<u64, u64>,
}

/// One client's session.
pub struct Session {
    source: Source,
    platform: Option<Platform>,
    account: Account,
    salt: u64,
    opened: BTreeMap<Ordinal, Opened>,
    modules: Handles<Module>,
    streams: Handles<(Ordinal, Id)>,
    events: Handles<(Ordinal, Id)>,
    pending: Option<Failure>,
    broken: Option<Failure>,
}

fn refuse<T>(status: Status, message: impl Into<String>) -> Outcome<T> {
    Err(DeviceError::new(status, message))
}

/// The work must be done when the reply goes out: an earlier error belongs there.
fn waits(request: &Request) -> bool {
    matches!(
        request,
        Request::Synchronize { .. }
            | Request::SynchronizeStream { .. }
            | Request::SynchronizeEvent { .. }
            | Request::Read { .. }
            | Request::Write { .. }
    )
}

impl Session {
    /// A session that has done nothing yet; `salt` makes its handles and addresses its own.
    pub fn new(source: Source, account: Account, salt: u64) -> Self {
        Self {
            source,
            platform: None,
            account,
            salt,
            opened: BTreeMap::new(),
            modules: Handles::new("module", salt, MAX_MODULES),
            streams: Handles::new("stream", salt.rotate_left(16), MAX_STREAMS),
            events: Handles::new("event", salt.rotate_left(32), MAX_EVENTS),
            pending: None,
            broken: None,
        }
    }

    /// Performs a request; the reply, if it is one that gets a reply.
    pub fn handle(&mut self, request: Request) -> Option<Reply> {
        let posted = request.is_posted();
        let informs = matches!(request, Request::Init {});
        let earlier = if informs {
            None
        } else if self.broken.is_some() {
            self.broken.clone()
        } else if waits(&request) {
            self.pending.take()
        } else {
            None
        };
        let outcome = match earlier {
            Some(failure) => Err(failure),
            None => self.perform(request).map_err(|error| {
                let fatal = error.status.is_fatal();
                let failure = Failure::from(error);
                if fatal {
                    self.broken.get_or_insert_with(|| failure.clone());
                }
                failure
            }),
        };
        match outcome {
            Ok(_) if posted => None,
            Ok(reply) => Some(reply),
            Err(failure) if posted => {
                self.pending.get_or_insert(failure);
                None
            }
            Err(failure) => Some(Reply::Failed { failure }),
        }
    }

    fn perform(&mut self, request: Request) -> Outcome<Reply> {
        match request {
            Request::Init {} => self.init(),
            Request::MemoryInfo { device } => {
                let (total, free) = self.memory(device)?;
                Ok(Reply::Memory { free, total })
            }
            Request::Allocate { device, bytes } => self.allocate(device, bytes),
            Request::Free { device, address } => {
                let opened = self.open(device)?;
                let Some(bytes) = opened.ranges.get(&address).copied() else {
                    let message = format!("nothing of this client is allocated at {address:#x}");
                    return refuse(Status::InvalidValue, message);
                };
                opened.device.free(address)?;
                opened.ranges.remove(&address);
                self.uncharge(device, bytes)?;
                Ok(Reply::Done {})
            }
            Request::Write { device, address, stream, data }
            | Request::PostWrite { device, address, stream, data } => {
                let stream = self.stream(device, stream)?;
                let opened = self.owned(device, address, data.0.len() as u64)?;
                opened.device.write(address, &data.0, stream)?;
                Ok(Reply::Done {})
            }
            Request::Read { device, address, stream, bytes } => {
                let stream = self.stream(device, stream)?;
                if bytes as usize > PIECE {
                    return refuse(Status::InvalidValue, format!("{bytes} bytes are too many for one read"));
                }
                let opened = self.owned(device, address, bytes.into())?;
                let mut data = vec![0; bytes as usize];
                opened.device.read(address, &mut data, stream)?;
                Ok(Reply::Data { data: Bytes(data) })
            }
            Request::Copy { device, to, from, bytes, stream } => {
                let stream = self.stream(device, stream)?;
                self.owned(device, from, bytes)?;
                self.owned(device, to, bytes)?.device.copy(to, from, bytes, stream)?;
                Ok(Reply::Done {})
            }
            Request::Fill { device, address, value, width, count, stream } => {
                let stream = self.stream(device, stream)?;
                let bytes = count.checked_mul(width.into()).filter(|_| matches!(width, 1 | 2 | 4));
                let Some(bytes) = bytes.filter(|_| address.is_multiple_of(width.into())) else {
                    return refuse(
                        Status::InvalidValue,
                        "a fill has values of 1, 2 or 4 bytes, aligned to that",
                    );
                };
                self.owned(device, address, bytes)?.device.fill(address, value, width, count, stream)?;
                Ok(Reply::Done {})
            }
            Request::LoadModule { device, ptx } => self.load(device, &ptx),
            Request::UnloadModule { device, module } => self.unload(device, module),
            Request::Launch { launch } => self.launch(&launch),
            Request::Synchronize { device } => {
                self.open(device)?.device.synchronize()?;
                Ok(Reply::Done {})
            }
            Request::CreateStream { device } => {
                self.streams.check_room()?;
                let id = self.open(device)?.device.create_stream()?;
                Ok(Reply::Created { handle: self.streams.insert((device, id)) })
            }
            Request::DestroyStream { device, stream } => {
                let id = self.stream(device, stream)?;
                self.streams.remove(stream)?;
                self.open(device)?.device.destroy_stream(id)?;
                Ok(Reply::Done {})
            }
            Request::SynchronizeStream { device, stream } => {
                let id = self.stream(device, stream)?;
                self.open(device)?.device.synchronize_stream(id)?;
                Ok(Reply::Done {})
            }
            Request::QueryStream { device, stream } => {
                let id = self.stream(device, stream)?;
                Ok(Reply::Ready { ready: self.open(device)?.device.query_stream(id)? })
            }
            Request::CreateEvent { device } => {
                self.events.check_room()?;
                let id = self.open(device)?.device.create_event()?;
                Ok(Reply::Created { handle: self.events.insert((device, id)) })
            }
            Request::DestroyEvent { device, event } => {
                let id = self.event(device, event)?;
                self.events.remove(event)?;
                self.open(device)?.device.destroy_event(id)?;
                Ok(Reply::Done {})
            }
            Request::RecordEvent { device, event, stream } => {
                let (id, stream) = (self.event(device, event)?, self.stream(device, stream)?);
                self.open(device)?.device.record_event(id, stream)?;
                Ok(Reply::Done {})
            }
            Request::SynchronizeEvent { device, event } => {
                let id = self.event(device, event)?;
                self.open(device)?.device.synchronize_event(id)?;
                Ok(Reply::Done {})
            }
            Request::ElapsedTime { device, start, end } => {
                let (start, end) = (self.event(device, start)?, self.event(device, end)?);
                let milliseconds = self.open(device)?.device.elapsed(start, end)?;
                Ok(Reply::Elapsed { milliseconds })
            }
        }
    }

    fn platform(&mut self) -> Outcome<&Platform> {
        let platform = match self.platform.take() {
            Some(platform) => platform,
            None => Platform::open(&self.source, self.salt)?,
        };
        Ok(self.platform.insert(platform))
    }

    fn init(&mut self) -> Outcome<Reply> {
        let mut devices = self.platform()?.devices()?;
        let totals = self.account.ledger.totals().map_err(ledger_error)?;
        for (device, used) in devices.iter_mut().zip(totals.used) {
            if device.software {
                device.device_used = used;
            }
            device.memory_total = device.device_total.min(self.account.limit.unwrap_or(u64::MAX));
        }
        Ok(Reply::Devices { devices, clients: totals.clients })
    }

    fn open(&mut self, ordinal: Ordinal) -> Outcome<&mut Opened> {
        if !self.opened.contains_key(&ordinal) {
            if ordinal as usize >= DEVICES {
                return refuse(Status::InvalidDevice, format!("there is no device {ordinal}"));
            }
            let device = self.platform()?.device(ordinal)?;
            let info = device.info();
            self.opened.insert(ordinal, Opened { device, info, used: 0, ranges: BTreeMap::new() });
        }
        self.opened
            .get_mut(&ordinal)
            .ok_or_else(|| DeviceError::new(Status::InvalidDevice, format!("there is no device {ordinal}")))
    }

    /// The device, if the range lies in one allocation of this client.
    fn owned(&mut self, ordinal: Ordinal, address: u64, bytes: u64) -> Outcome<&mut Opened> {
        let opened = self.open(ordinal)?;
        let holds = opened.ranges.range(..=address).next_back().is_some_and(|(start, size)| {
            (address - start).checked_add(bytes).is_some_and(|end| end <= *size)
        });
        if holds {
            return Ok(opened);
        }
        let message = format!("{bytes} bytes at {address:#x} lie outside of what this client has allocated");
        refuse(Status::InvalidValue, message)
    }

    /// Bytes that the client may use in all, and bytes left.
    fn memory(&mut self, ordinal: Ordinal) -> Outcome<(u64, u64)> {
        let limit = self.account.limit.unwrap_or(u64::MAX);
        let totals = self.account.ledger.totals().map_err(ledger_error)?;
        let opened = self.open(ordinal)?;
        let device_used = match opened.device.used()? {
            Some(used) => used,
            None => totals.used[ordinal as usize % DEVICES],
        };
        let total = opened.info.device_total.min(limit);
        let device_free = opened.info.device_total.saturating_sub(device_used);
        Ok((total, total.saturating_sub(opened.used).min(device_free)))
    }

    /// Counts bytes against the quota before they are allocated.
    fn charge(&mut self, ordinal: Ordinal, bytes: u64) -> Outcome<()> {
        let (total, _) = self.memory(ordinal)?;
        let opened = self.open(ordinal)?;
        let before = opened.used;
        let device_total = opened.info.device_total;
        let after = before.checked_add(bytes.div_ceil(UNIT).saturating_mul(UNIT));
        let Some(after) = after.filter(|after| *after <= total) else {
            let message =
                format!("{bytes} bytes are more than the {} left of this client's {total}", total - before);
            return refuse(Status::OutOfMemory, message);
        };
        let slot = self.account.slot;
        if !self.account.ledger.set_used(slot, ordinal as usize, after, device_total).map_err(ledger_error)? {
            return refuse(
                Status::OutOfMemory,
                format!("other clients use the device; {bytes} bytes are not free"),
            );
        }
        self.open(ordinal)?.used = after;
        Ok(())
    }

    fn uncharge(&mut self, ordinal: Ordinal, bytes: u64) -> Outcome<()> {
        let opened = self.open(ordinal)?;
        opened.used = opened.used.saturating_sub(bytes.div_ceil(UNIT).saturating_mul(UNIT));
        let (used, total) = (opened.used, opened.info.device_total);
        let slot = self.account.slot;
        self.account.ledger.set_used(slot, ordinal as usize, used, total).map_err(ledger_error)?;
        Ok(())
    }

    fn allocate(&mut self, ordinal: Ordinal, bytes: u64) -> Outcome<Reply> {
        if bytes == 0 {
            return refuse(Status::InvalidValue, "an allocation has at least one byte");
        }
        if self.open(ordinal)?.ranges.len() >= MAX_ALLOCATIONS {
            return refuse(Status::OutOfMemory, format!("{MAX_ALLOCATIONS} allocations are in use"));
        }
        self.charge(ordinal, bytes)?;
        let opened = self.open(ordinal)?;
        match opened.device.allocate(bytes) {
            Ok(address) => {
                opened.ranges.insert(address, bytes);
                Ok(Reply::Address { address })
            }
            Err(error) => {
                self.uncharge(ordinal, bytes)?;
                Err(error)
            }
        }
    }

    fn load(&mut self, ordinal: Ordinal, ptx: &str) -> Outcome<Reply> {
        self.modules.check_room()?;
        if ptx.len() > MAX_MODULE {
            return refuse(
                Status::InvalidPtx,
                format!("a module of {} bytes exceeds {MAX_MODULE}", ptx.len()),
            );
        }
        let bytes = self.open(ordinal)?.device.module_bytes(ptx)?;
        self.charge(ordinal, bytes)?;
        let opened = self.open(ordinal)?;
        let loaded = match opened.device.load(ptx) {
            Ok(loaded) => loaded,
            Err(error) => {
                self.uncharge(ordinal, bytes)?;
                return Err(error);
            }
        };
        opened.ranges.extend(loaded.symbols.iter().map(|s| (s.address, s.bytes)));
        // What was charged before loading came from the text; what counts is what is there.
        let real = loaded.symbols.iter().map(|s| s.bytes).sum();
        self.uncharge(ordinal, bytes)?;
        self.charge(ordinal, real)?;
        let module = self.modules.insert(Module {
            device: ordinal,
            id: loaded.module,
            kernels: loaded.kernels.clone(),
            variables: loaded.symbols.iter().map(|s| s.address).collect(),
        });
        Ok(Reply::Module { module, kernels: loaded.kernels, symbols: loaded.symbols })
    }

    fn unload(&mut self, ordinal: Ordinal, handle: Handle) -> Outcome<Reply> {
        if self.modules.get(handle)?.device != ordinal {
            return refuse(Status::InvalidHandle, "the module was loaded on another device");
        }
        let module = self.modules.remove(handle)?;
        let opened = self.open(ordinal)?;
        opened.device.unload(module.id)?;
        let bytes = module.variables.iter().filter_map(|start| opened.ranges.remove(start)).sum();
        self.uncharge(ordinal, bytes)?;
        Ok(Reply::Done {})
    }

    fn launch(&mut self, launch: &Launch) -> Outcome<Reply> {
        let stream = self.stream(launch.device, launch.stream)?;
        let module = self.modules.get(launch.module)?;
        let id = module.id;
        let Some(kernel) =
            module.kernels.get(launch.kernel as usize).filter(|_| module.device == launch.device)
        else {
            return refuse(Status::InvalidHandle, "the module has no such kernel on this device");
        };
        let wanted =
            kernel.parameters.iter().map(|[offset, size]| offset.saturating_add(*size)).max().unwrap_or(0);
        let given = launch.parameters.0.len();
        if given != wanted as usize || given > MAX_PARAMETERS {
            let message = format!("kernel {} takes {wanted} bytes of parameters, not {given}", kernel.name);
            return refuse(Status::InvalidValue, message);
        }
        self.open(launch.device)?.device.launch(Dispatch {
            module: id,
            kernel: launch.kernel as usize,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream,
            parameters: &launch.parameters.0,
        })?;
        Ok(Reply::Done {})
    }

    fn stream(&self, device: Ordinal, stream: Handle) -> Outcome<Id> {
        if stream == 0 {
            return Ok(0);
        }
        on_device(*self.streams.get(stream)?, device)
    }

    fn event(&self, device: Ordinal, event: Handle) -> Outcome<Id> {
        on_device(*self.events.get(event)?, device)
    }
}

fn on_device((owner, id): (Ordinal, Id), device: Ordinal) -> Outcome<Id> {
    if owner == device { Ok(id) } else { refuse(Status::InvalidHandle, "that was made on another device") }
}

fn ledger_error(error: std::io::Error) -> DeviceError {
    DeviceError::new(Status::Other(999), format!("the server's ledger can't be used: {error}"))
}
