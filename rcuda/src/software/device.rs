//! The software device behind the [`Device`] trait. Everything is done when a call returns, in the order of the
//! calls: any stream order is kept by that.

use std::{collections::BTreeMap, time::Instant};

use super::{
    machine::{self, Cause, Fault, Grid, MAX_THREADS, dynamic_base},
    memory::{Memory, OutOfBounds},
};
use crate::{
    device::{Device, DeviceError, Dispatch, Id, Loaded, Outcome, Status},
    ptx::{self, KernelCode, Parameter, PtxError, parser::MAX_SHARED},
    wire::message::{DeviceInfo, Kernel, Symbol},
};

/// Name that the device goes by; it says what it is.
pub const NAME: &str = "labshift software device";
/// Compute capability whose instructions the subset is taken from.
pub const CAPABILITY: [u32; 2] = [7, 0];

/// Instructions of one launch: hours. A client that leaves ends its kernel at once, however long it still has.
const STEP_LIMIT: u64 = 1 << 40;

#[derive(Debug)]
struct LoadedModule {
    kernels: Vec<KernelCode>,
    variables: Vec<u64>,
}

/// A device in software, with memory of its own.
#[derive(Debug)]
pub struct SoftwareDevice {
    memory: Memory,
    total: u64,
    modules: BTreeMap<Id, LoadedModule>,
    /// When each event was reached.
    events: BTreeMap<Id, Option<Instant>>,
    last: Id,
}

impl From<OutOfBounds> for DeviceError {
    fn from(error: OutOfBounds) -> Self {
        Self::new(Status::InvalidValue, error.to_string())
    }
}

impl From<PtxError> for DeviceError {
    fn from(error: PtxError) -> Self {
        Self::new(Status::InvalidPtx, error.to_string())
    }
}

impl From<Fault> for DeviceError {
    fn from(fault: Fault) -> Self {
        let status = match fault.cause {
            Cause::Memory(_) | Cause::Window { .. } => Status::IllegalAddress,
            Cause::Misaligned { .. } => Status::MisalignedAddress,
            Cause::Trap => Status::LaunchFailed,
            Cause::Deadlock | Cause::StepLimit => Status::LaunchTimeout,
        };
        Self::new(status, fault.to_string())
    }
}

/// The layout of a kernel's parameters as clients get it.
pub fn layout(name: &str, parameters: &[Parameter]) -> Kernel {
    Kernel { name: name.to_owned(), parameters: parameters.iter().map(|p| [p.offset, p.size]).collect() }
}

impl SoftwareDevice {
    /// A device with `total` bytes of memory; `salt` makes its addresses its own.
    pub fn new(total: u64, salt: u64) -> Self {
        Self { memory: Memory::new(salt), total, modules: BTreeMap::new(), events: BTreeMap::new(), last: 0 }
    }

    /// What the device says of itself.
    pub fn description(total: u64) -> DeviceInfo {
        DeviceInfo {
            name: NAME.to_owned(),
            software: true,
            capability: CAPABILITY,
            memory_total: total,
            device_total: total,
            device_used: 0,
            uuid: *b"labshift-soft-00",
            attributes: attributes(),
        }
    }

    fn next_id(&mut self) -> Id {
        self.last += 1;
        self.last
    }

    fn event(&self, event: Id) -> Outcome<Instant> {
        self.events
            .get(&event)
            .copied()
            .flatten()
            .ok_or_else(|| DeviceError::new(Status::InvalidHandle, "the event was never recorded"))
    }
}

/// Values by `CUdevice_attribute` number.
fn attributes() -> Vec<[i32; 2]> {
    let [major, minor] = CAPABILITY.map(|n| n as i32);
    vec![
        [1, MAX_THREADS as i32], // threads per block
        [2, 1024],               // block x, y, z
        [3, 1024],
        [4, 64],
        [5, i32::MAX], // grid x, y, z
        [6, 65_535],
        [7, 65_535],
        [8, MAX_SHARED as i32], // shared memory per block
        [9, 65_536],            // constant memory
        [10, machine::WARP as i32],
        [11, i32::MAX],           // pitch
        [12, 65_536],             // registers per block
        [13, 1_000_000],          // clock in kHz
        [14, 512],                // texture alignment
        [15, 0],                  // overlap of copy and kernel
        [16, 1],                  // multiprocessors
        [17, 0],                  // no time limit on kernels
        [18, 0],                  // not integrated
        [19, 0],                  // can't map host memory
        [20, 0],                  // compute mode: default
        [31, 0],                  // concurrent kernels
        [39, MAX_THREADS as i32], // threads per multiprocessor
        [40, 0],                  // copy engines
        [41, 0],                  // unified addressing with the host
        [75, major],
        [76, minor],
        [81, MAX_SHARED as i32], // shared memory per multiprocessor
        [83, 0],                 // managed memory
    ]
}

impl Device for SoftwareDevice {
    fn info(&self) -> DeviceInfo {
        Self::description(self.total)
    }

    fn used(&self) -> Outcome<Option<u64>> {
        // Its memory is the worker's own: only the ledger knows what the other workers use.
        Ok(None)
    }

    fn allocate(&mut self, bytes: u64) -> Outcome<u64> {
        if bytes > self.total.saturating_sub(self.memory.used()) {
            return Err(DeviceError::new(
                Status::OutOfMemory,
                format!("{bytes} bytes exceed the device's memory"),
            ));
        }
        self.memory
            .allocate(bytes)
            .ok_or_else(|| DeviceError::new(Status::OutOfMemory, "too many allocations, or one of no bytes"))
    }

    fn free(&mut self, address: u64) -> Outcome<()> {
        self.memory.free(address).map(|_| ()).ok_or_else(|| {
            DeviceError::new(Status::InvalidValue, format!("nothing is allocated at {address:#x}"))
        })
    }

    fn write(&mut self, address: u64, data: &[u8], _stream: Id) -> Outcome<()> {
        self.memory.bytes_mut(address, data.len() as u64)?.copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, address: u64, data: &mut [u8], _stream: Id) -> Outcome<()> {
        data.copy_from_slice(self.memory.bytes(address, data.len() as u64)?);
        Ok(())
    }

    fn copy(&mut self, to: u64, from: u64, bytes: u64, _stream: Id) -> Outcome<()> {
        Ok(self.memory.copy(to, from, bytes)?)
    }

    fn fill(&mut self, address: u64, value: u32, width: u8, count: u64, _stream: Id) -> Outcome<()> {
        let width = usize::from(width.clamp(1, 4));
        let target = self.memory.bytes_mut(address, count.saturating_mul(width as u64))?;
        let value = value.to_le_bytes();
        target.chunks_exact_mut(width).for_each(|place| place.copy_from_slice(&value[..width]));
        Ok(())
    }

    fn module_bytes(&self, ptx: &str) -> Outcome<u64> {
        Ok(ptx::parser::parse(ptx)?.variables.iter().map(|v| v.size).sum())
    }

    fn load(&mut self, ptx: &str) -> Outcome<Loaded> {
        let module = ptx::parser::parse(ptx)?;
        let mut symbols: Vec<Symbol> = Vec::new();
        for variable in &module.variables {
            match self.allocate(variable.size) {
                Ok(address) => {
                    self.memory
                        .bytes_mut(address, variable.initial.len() as u64)?
                        .copy_from_slice(&variable.initial);
                    symbols.push(Symbol { name: variable.name.clone(), address, bytes: variable.size });
                }
                Err(error) => {
                    for symbol in symbols {
                        self.memory.free(symbol.address);
                    }
                    return Err(error);
                }
            }
        }
        let id = self.next_id();
        let kernels = module.kernels.iter().map(|k| layout(&k.name, &k.parameters)).collect();
        let variables = symbols.iter().map(|s| s.address).collect();
        self.modules.insert(id, LoadedModule { kernels: module.kernels, variables });
        Ok(Loaded { module: id, kernels, symbols })
    }

    fn unload(&mut self, module: Id) -> Outcome<()> {
        for address in self.modules.remove(&module).map(|m| m.variables).unwrap_or_default() {
            self.memory.free(address);
        }
        Ok(())
    }

    fn launch(&mut self, dispatch: Dispatch<'_>) -> Outcome<()> {
        let module = self
            .modules
            .get(&dispatch.module)
            .ok_or_else(|| DeviceError::new(Status::InvalidHandle, "no such module"))?;
        let kernel = module
            .kernels
            .get(dispatch.kernel)
            .ok_or_else(|| DeviceError::new(Status::InvalidHandle, "the module has no such kernel"))?;
        let Dispatch { grid, block, shared_bytes, .. } = dispatch;
        let threads = block.iter().fold(1u64, |all, n| all.saturating_mul((*n).into()));
        if threads == 0 || grid.contains(&0) || block[2] > 64 || grid[1].max(grid[2]) > 65_535 {
            let message = format!("a grid of {grid:?} blocks of {block:?} threads can't be launched");
            return Err(DeviceError::new(Status::InvalidValue, message));
        }
        if threads > kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS) {
            let message = format!("{threads} threads are too many for a block of kernel {}", kernel.name);
            return Err(DeviceError::new(Status::InvalidValue, message));
        }
        if u64::from(dynamic_base(kernel)) + u64::from(shared_bytes) > MAX_SHARED {
            let message =
                format!("kernel {} asks for more than {MAX_SHARED} bytes of shared memory", kernel.name);
            return Err(DeviceError::new(Status::InvalidValue, message));
        }
        let run = Grid {
            kernel,
            variables: &module.variables,
            parameters: dispatch.parameters,
            grid,
            block,
            dynamic_shared: shared_bytes,
            step_limit: STEP_LIMIT,
        };
        Ok(machine::run(run, &mut self.memory)?)
    }

    fn synchronize(&mut self) -> Outcome<()> {
        Ok(())
    }

    fn create_stream(&mut self) -> Outcome<Id> {
        Ok(self.next_id())
    }

    fn destroy_stream(&mut self, _stream: Id) -> Outcome<()> {
        Ok(())
    }

    fn synchronize_stream(&mut self, _stream: Id) -> Outcome<()> {
        Ok(())
    }

    fn query_stream(&mut self, _stream: Id) -> Outcome<bool> {
        Ok(true)
    }

    fn create_event(&mut self) -> Outcome<Id> {
        let id = self.next_id();
        self.events.insert(id, None);
        Ok(id)
    }

    fn destroy_event(&mut self, event: Id) -> Outcome<()> {
        self.events.remove(&event);
        Ok(())
    }

    fn record_event(&mut self, event: Id, _stream: Id) -> Outcome<()> {
        self.events.insert(event, Some(Instant::now()));
        Ok(())
    }

    fn synchronize_event(&mut self, _event: Id) -> Outcome<()> {
        Ok(())
    }

    fn elapsed(&mut self, start: Id, end: Id) -> Outcome<f32> {
        let (start, end) = (self.event(start)?, self.event(end)?);
        let seconds = match end.checked_duration_since(start) {
            Some(forward) => forward.as_secs_f32(),
            None => -start.duration_since(end).as_secs_f32(),
        };
        Ok(seconds * 1000.0)
    }
}
