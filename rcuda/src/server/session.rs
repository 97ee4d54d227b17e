//! One client's conversation: requests in, replies out. Checks ownership, ranges and quotas, keeps the error of a
//! posted request until somebody waits, then hands the work to a [`Device`].
//!
//! ```text
//!   open --(posted request fails)--> open, with a pending error --(called request that waits)--> open
//!     \--(kernel faults)--> broken: every later request gets that error, as a CUDA context would
//! ```

use std::collections::BTreeMap;

use super::{
    account::Account,
    handles::Handles,
    ledger::DEVICES,
    platform::{Platform, Source},
};
use crate::{
    device::{Device, DeviceError, Dispatch, Id, Outcome, Status},
    wire::message::{
        Bytes, DeviceInfo, Failure, Handle, Kernel, Launch, MAX_MODULE, MAX_PARAMETERS, Ordinal, PIECE,
        Reply, Request,
    },
};

const MAX_ALLOCATIONS: usize = 65_536;
const MAX_MODULES: usize = 1024;
const MAX_STREAMS: usize = 1024;
const MAX_EVENTS: usize = 65_536;

#[derive(Debug)]
struct Module {
    device: Ordinal,
    id: Id,
    kernels: Vec<Kernel>,
    /// Start addresses of its variables.
    variables: Vec<u64>,
    /// Bytes that were charged for them.
    charged: u64,
}

/// Device memory that the client owns.
#[derive(Debug, Clone, Copy)]
struct Range {
    bytes: u64,
    /// Part of a module: freed with it, not alone.
    variable: bool,
}

struct Opened {
    device: Box<dyn Device>,
    info: DeviceInfo,
    /// By start address.
    ranges: BTreeMap<u64, Range>,
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
                let Some(Range { bytes, variable: false }) = opened.ranges.get(&address).copied() else {
                    let message = format!("nothing of this client is allocated at {address:#x}");
                    return refuse(Status::InvalidValue, message);
                };
                opened.device.free(address)?;
                opened.ranges.remove(&address);
                let total = opened.info.device_total;
                self.account.refund(device, bytes, total)?;
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
        let totals = self.account.totals()?;
        for (device, used) in devices.iter_mut().zip(totals.used) {
            if device.software {
                device.device_used = used;
            }
            device.memory_total = self.account.share(device.device_total);
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
            self.opened.insert(ordinal, Opened { device, info, ranges: BTreeMap::new() });
        }
        self.opened
            .get_mut(&ordinal)
            .ok_or_else(|| DeviceError::new(Status::InvalidDevice, format!("there is no device {ordinal}")))
    }

    /// The device, if the range lies in one allocation of this client.
    fn owned(&mut self, ordinal: Ordinal, address: u64, bytes: u64) -> Outcome<&mut Opened> {
        let opened = self.open(ordinal)?;
        let holds = opened.ranges.range(..=address).next_back().is_some_and(|(start, range)| {
            (address - start).checked_add(bytes).is_some_and(|end| end <= range.bytes)
        });
        if holds {
            return Ok(opened);
        }
        let message = format!("{bytes} bytes at {address:#x} lie outside of what this client has allocated");
        refuse(Status::InvalidValue, message)
    }

    /// Bytes that the client may use in all, and bytes left.
    fn memory(&mut self, ordinal: Ordinal) -> Outcome<(u64, u64)> {
        let totals = self.account.totals()?;
        let opened = self.open(ordinal)?;
        let device_used = opened.device.used()?.unwrap_or(totals.used[ordinal as usize % DEVICES]);
        let device_total = opened.info.device_total;
        let share = self.account.share(device_total);
        let left = share.saturating_sub(self.account.used(ordinal));
        Ok((share, left.min(device_total.saturating_sub(device_used))))
    }

    fn allocate(&mut self, ordinal: Ordinal, bytes: u64) -> Outcome<Reply> {
        if bytes == 0 {
            return refuse(Status::InvalidValue, "an allocation has at least one byte");
        }
        let opened = self.open(ordinal)?;
        let total = opened.info.device_total;
        if opened.ranges.len() >= MAX_ALLOCATIONS {
            return refuse(Status::OutOfMemory, format!("{MAX_ALLOCATIONS} allocations are in use"));
        }
        self.account.charge(ordinal, bytes, total)?;
        let opened = self.open(ordinal)?;
        match opened.device.allocate(bytes) {
            Ok(address) => {
                opened.ranges.insert(address, Range { bytes, variable: false });
                Ok(Reply::Address { address })
            }
            Err(error) => {
                self.account.refund(ordinal, bytes, total)?;
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
        let opened = self.open(ordinal)?;
        let total = opened.info.device_total;
        let charged = opened.device.module_bytes(ptx)?;
        self.account.charge(ordinal, charged, total)?;
        let opened = self.open(ordinal)?;
        let loaded = match opened.device.load(ptx) {
            Ok(loaded) => loaded,
            Err(error) => {
                self.account.refund(ordinal, charged, total)?;
                return Err(error);
            }
        };
        for symbol in &loaded.symbols {
            opened.ranges.insert(symbol.address, Range { bytes: symbol.bytes, variable: true });
        }
        let module = self.modules.insert(Module {
            device: ordinal,
            id: loaded.module,
            kernels: loaded.kernels.clone(),
            variables: loaded.symbols.iter().map(|s| s.address).collect(),
            charged,
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
        for start in &module.variables {
            opened.ranges.remove(start);
        }
        let total = opened.info.device_total;
        self.account.refund(ordinal, module.charged, total)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{selftest::VECTOR_ADD, server::ledger::Ledger, wire::codec::Wire};

    const TOTAL: u64 = 1 << 20;

    fn session() -> std::io::Result<Session> {
        let ledger = Ledger::create()?;
        let slot = ledger.enter(1)?.unwrap_or(0);
        let account = Account::new(Some(TOTAL / 2), ledger, slot);
        Ok(Session::new(Source::Software { total: TOTAL }, account, 1))
    }

    /// A client that made one of everything, and requests that name these things.
    fn seeds(session: &mut Session) -> Vec<Request> {
        let device = 0;
        let Some(Reply::Address { address }) = session.handle(Request::Allocate { device, bytes: 4096 })
        else {
            panic!("no memory")
        };
        let load = Request::LoadModule { device, ptx: VECTOR_ADD.into() };
        let Some(Reply::Module { module, .. }) = session.handle(load.clone()) else { panic!("no module") };
        let mut make = |request| match session.handle(request) {
            Some(Reply::Created { handle }) => handle,
            other => panic!("{other:?}"),
        };
        let (stream, event) = (make(Request::CreateStream { device }), make(Request::CreateEvent { device }));
        let mut parameters: Vec<u8> = [address; 3].iter().flat_map(|a| a.to_le_bytes()).collect();
        parameters.extend_from_slice(&64u32.to_le_bytes());
        let (grid, block) = ([2, 1, 1], [32, 1, 1]);
        let parameters = Bytes(parameters);
        let launch = Launch { device, module, kernel: 0, grid, block, shared_bytes: 0, stream, parameters };
        vec![
            Request::Init {},
            Request::MemoryInfo { device },
            Request::Allocate { device, bytes: 4096 },
            Request::Free { device, address },
            Request::Write { device, address, stream, data: Bytes(vec![7; 64]) },
            Request::PostWrite { device, address, stream, data: Bytes(vec![7; 64]) },
            Request::Read { device, address, stream, bytes: 64 },
            Request::Copy { device, to: address, from: address + 64, bytes: 64, stream },
            Request::Fill { device, address, value: 7, width: 4, count: 16, stream },
            load,
            Request::UnloadModule { device, module },
            Request::Launch { launch },
            Request::Synchronize { device },
            Request::CreateStream { device },
            Request::DestroyStream { device, stream },
            Request::QueryStream { device, stream },
            Request::CreateEvent { device },
            Request::RecordEvent { device, event, stream },
            Request::SynchronizeEvent { device, event },
            Request::ElapsedTime { device, start: event, end: event },
            Request::DestroyEvent { device, event },
        ]
    }

    /// Whatever a client sends, its worker answers or refuses, and the quota holds.
    #[test]
    fn hostile_requests_get_an_answer() -> std::io::Result<()> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        let mut done = 0;
        for _ in 0..200 {
            let mut session = session()?;
            let seeds = seeds(&mut session);
            for _ in 0..200 {
                let mut bytes = Vec::new();
                seeds[below(seeds.len())].put(&mut bytes);
                for _ in 0..below(3) {
                    // Behind the tag: what the request says changes, more than which one it is.
                    let at = 2.min(bytes.len() - 1) + below(bytes.len().saturating_sub(2).max(1));
                    let at = at.min(bytes.len() - 1);
                    bytes[at] ^= 1 << below(8);
                }
                let Ok(request) = Request::from_bytes(&bytes) else { continue };
                // A grid of billions is legal, and would take its time.
                if let Request::Launch { launch } = &request
                    && launch.grid.iter().map(|n| u64::from(*n)).product::<u64>() > 1000
                {
                    continue;
                }
                let posted = request.is_posted();
                let reply = session.handle(request);
                assert_eq!(reply.is_none(), posted);
                done += usize::from(!matches!(reply, Some(Reply::Failed { .. })));
                let ranges = session.opened.values().flat_map(|opened| opened.ranges.values());
                let owned: u64 = ranges.map(|range| range.bytes).sum();
                let used = session.account.used(0);
                assert!(owned <= used && used <= TOTAL / 2, "{owned} bytes owned, {used} counted");
            }
        }
        assert!(done > 5000, "the loop must reach the device: {done}");
        Ok(())
    }
}
