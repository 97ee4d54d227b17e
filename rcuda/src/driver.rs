//! The real device: the installed driver's library, behind the same [`Device`] trait as the software device.
//!
//! Kernels come as PTX text; the driver compiles them. Their parameter layouts are read from the same text, so no
//! driver newer than CUDA 11 is asked for.

use std::{collections::BTreeMap, ffi::CString, path::Path};

use crate::{
    device::{Device, DeviceError, Dispatch, Id, Loaded, Outcome, Status},
    foreign::libcuda::{Code, Context, Event, Function, Library, Module, Stream},
    ptx::signature::{Signature, signature},
    software::device::layout,
    wire::message::{DeviceInfo, Ordinal, Symbol},
};

/// Attribute numbers that are asked for; those that a driver does not know are left out.
const ATTRIBUTES: std::ops::RangeInclusive<i32> = 1..=150;

/// The driver, initialised.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    library: Library,
}

/// One device of the driver, with its context.
#[derive(Debug)]
pub struct DriverDevice {
    library: Library,
    context: Context,
    info: DeviceInfo,
    modules: BTreeMap<Id, (Module, Vec<Function>)>,
    streams: BTreeMap<Id, Stream>,
    events: BTreeMap<Id, Event>,
    last: Id,
}

fn status(code: Code) -> Status {
    match code {
        1 => Status::InvalidValue,
        2 => Status::OutOfMemory,
        100 => Status::NoDevice,
        101 => Status::InvalidDevice,
        700 => Status::IllegalAddress,
        other => Status::Other(other),
    }
}

fn explain(library: &Library, what: &str, code: Code) -> DeviceError {
    DeviceError::new(status(code), format!("{what}: the driver says {}", library.error_name(code)))
}

fn c_string(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| DeviceError::new(Status::InvalidPtx, "the text has a zero byte"))
}

impl Driver {
    /// Loads and initialises the library at an absolute path.
    pub fn open(path: &Path) -> Outcome<Self> {
        let library = Library::open(path)
            .map_err(|error| DeviceError::new(Status::NotInitialized, error.to_string()))?;
        library.init().map_err(|code| explain(&library, "initialising", code))?;
        Ok(Self { library })
    }

    /// All devices.
    pub fn devices(&self) -> Outcome<Vec<DeviceInfo>> {
        let count =
            self.library.device_count().map_err(|code| explain(&self.library, "counting devices", code))?;
        (0..count)
            .map(|ordinal| {
                let mut info = self.describe(ordinal)?;
                // Free memory is known to contexts only; one is made for the question.
                let device = self.device(ordinal as Ordinal)?;
                info.device_used = device.used()?.unwrap_or(0);
                Ok(info)
            })
            .collect()
    }

    fn describe(&self, ordinal: i32) -> Outcome<DeviceInfo> {
        let library = &self.library;
        let ask = || -> Result<DeviceInfo, Code> {
            let device = library.device(ordinal)?;
            let total = library.device_total(device)? as u64;
            let attributes: Vec<[i32; 2]> = ATTRIBUTES
                .filter_map(|number| Some([number, library.device_attribute(device, number).ok()?]))
                .collect();
            let value = |number| attributes.iter().find(|a| a[0] == number).map_or(0, |a| a[1] as u32);
            Ok(DeviceInfo {
                name: library.device_name(device)?,
                software: false,
                capability: [value(75), value(76)],
                memory_total: total,
                device_total: total,
                device_used: 0,
                uuid: library.device_uuid(device)?,
                attributes,
            })
        };
        ask().map_err(|code| explain(library, &format!("asking device {ordinal} what it is"), code))
    }

    /// Opens a device with its primary context.
    pub fn device(&self, ordinal: Ordinal) -> Outcome<DriverDevice> {
        let library = self.library;
        let info = self.describe(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        let open = || {
            let device = library.device(ordinal as i32)?;
            let context = library.retain_context(device)?;
            library.set_context(context)?;
            Ok(context)
        };
        let context = open().map_err(|code| explain(&library, &format!("opening device {ordinal}"), code))?;
        Ok(DriverDevice {
            library,
            context,
            info,
            modules: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            last: 0,
        })
    }
}

impl DriverDevice {
    /// Performs a call in this device's context.
    fn call<T>(&self, what: &str, call: impl FnOnce(&Library) -> Result<T, Code>) -> Outcome<T> {
        self.library
            .set_context(self.context)
            .and_then(|()| call(&self.library))
            .map_err(|code| explain(&self.library, what, code))
    }

    fn next_id(&mut self) -> Id {
        self.last += 1;
        self.last
    }

    fn stream(&self, id: Id) -> Outcome<Stream> {
        if id == 0 {
            return Ok(Stream::DEFAULT);
        }
        self.streams
            .get(&id)
            .copied()
            .ok_or_else(|| DeviceError::new(Status::InvalidHandle, "no such stream"))
    }

    fn event(&self, id: Id) -> Outcome<Event> {
        self.events.get(&id).copied().ok_or_else(|| DeviceError::new(Status::InvalidHandle, "no such event"))
    }

    fn size(bytes: u64) -> Outcome<usize> {
        usize::try_from(bytes)
            .map_err(|_| DeviceError::new(Status::InvalidValue, "the size has too many bits"))
    }

    fn functions(&self, module: Module, described: &Signature) -> Outcome<(Vec<Function>, Vec<Symbol>)> {
        let mut functions = Vec::new();
        for (name, _) in &described.kernels {
            let c_name = c_string(name)?;
            let what = format!("finding kernel {name}");
            functions.push(self.call(&what, |library| library.function(module, &c_name))?);
        }
        let mut symbols = Vec::new();
        for (name, _) in &described.variables {
            let c_name = c_string(name)?;
            // Only visible variables can be found; the others are the module's own.
            if let Ok((address, bytes)) = self.library.global(module, &c_name) {
                symbols.push(Symbol { name: name.clone(), address, bytes: bytes as u64 });
            }
        }
        Ok((functions, symbols))
    }
}

fn described(ptx: &str) -> Outcome<Signature> {
    Ok(signature(ptx)?)
}

impl Device for DriverDevice {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn used(&self) -> Outcome<Option<u64>> {
        let (free, total) = self.call("asking for free memory", Library::memory_info)?;
        Ok(Some((total - free.min(total)) as u64))
    }

    fn allocate(&mut self, bytes: u64) -> Outcome<u64> {
        let size = Self::size(bytes)?;
        self.call(&format!("allocating {bytes} bytes"), |library| library.allocate(size))
    }

    fn free(&mut self, address: u64) -> Outcome<()> {
        self.call("freeing memory", |library| library.free(address))
    }

    fn write(&mut self, address: u64, data: &[u8], stream: Id) -> Outcome<()> {
        let stream = self.stream(stream)?;
        self.call("copying to the device", |library| library.write(address, data, stream))
    }

    fn read(&mut self, address: u64, data: &mut [u8], stream: Id) -> Outcome<()> {
        let stream = self.stream(stream)?;
        self.call("copying from the device", |library| library.read(address, data, stream))
    }

    fn copy(&mut self, to: u64, from: u64, bytes: u64, stream: Id) -> Outcome<()> {
        let (size, stream) = (Self::size(bytes)?, self.stream(stream)?);
        self.call("copying inside the device", |library| library.copy(to, from, size, stream))
    }

    fn fill(&mut self, address: u64, value: u32, width: u8, count: u64, stream: Id) -> Outcome<()> {
        let (count, stream) = (Self::size(count)?, self.stream(stream)?);
        self.call("filling memory", |library| library.fill(address, value, width, count, stream))
    }

    fn module_bytes(&self, ptx: &str) -> Outcome<u64> {
        Ok(described(ptx)?.variables.iter().map(|(_, bytes)| bytes).sum())
    }

    fn load(&mut self, ptx: &str) -> Outcome<Loaded> {
        let described = described(ptx)?;
        let text = c_string(ptx)?;
        let module = self.call("loading a module", |library| library.load_module(&text))?;
        let (functions, symbols) = match self.functions(module, &described) {
            Ok(found) => found,
            Err(error) => {
                self.call("unloading a module", |library| library.unload_module(module))?;
                return Err(error);
            }
        };
        let id = self.next_id();
        self.modules.insert(id, (module, functions));
        let kernels = described.kernels.iter().map(|(name, parameters)| layout(name, parameters)).collect();
        Ok(Loaded { module: id, kernels, symbols })
    }

    fn unload(&mut self, module: Id) -> Outcome<()> {
        match self.modules.remove(&module) {
            Some((module, _)) => self.call("unloading a module", |library| library.unload_module(module)),
            None => Ok(()),
        }
    }

    fn launch(&mut self, dispatch: Dispatch<'_>) -> Outcome<()> {
        let stream = self.stream(dispatch.stream)?;
        let function = self.modules.get(&dispatch.module).and_then(|(_, f)| f.get(dispatch.kernel)).copied();
        let function = function.ok_or_else(|| DeviceError::new(Status::InvalidHandle, "no such kernel"))?;
        let Dispatch { grid, block, shared_bytes, parameters, .. } = dispatch;
        self.call("launching a kernel", |library| {
            library.launch(function, grid, block, shared_bytes, stream, parameters)
        })
    }

    fn synchronize(&mut self) -> Outcome<()> {
        self.call("waiting for the device", Library::synchronize)
    }

    fn create_stream(&mut self) -> Outcome<Id> {
        let stream = self.call("making a stream", Library::create_stream)?;
        let id = self.next_id();
        self.streams.insert(id, stream);
        Ok(id)
    }

    fn destroy_stream(&mut self, stream: Id) -> Outcome<()> {
        let found = self.stream(stream)?;
        self.streams.remove(&stream);
        self.call("dropping a stream", |library| library.destroy_stream(found))
    }

    fn synchronize_stream(&mut self, stream: Id) -> Outcome<()> {
        let stream = self.stream(stream)?;
        self.call("waiting for a stream", |library| library.synchronize_stream(stream))
    }

    fn query_stream(&mut self, stream: Id) -> Outcome<bool> {
        let stream = self.stream(stream)?;
        match self.call("asking a stream", |library| library.query_stream(stream)) {
            Ok(()) => Ok(true),
            Err(error) if error.status.code() == Status::NotReady.code() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create_event(&mut self) -> Outcome<Id> {
        let event = self.call("making an event", Library::create_event)?;
        let id = self.next_id();
        self.events.insert(id, event);
        Ok(id)
    }

    fn destroy_event(&mut self, event: Id) -> Outcome<()> {
        let found = self.event(event)?;
        self.events.remove(&event);
        self.call("dropping an event", |library| library.destroy_event(found))
    }

    fn record_event(&mut self, event: Id, stream: Id) -> Outcome<()> {
        let (event, stream) = (self.event(event)?, self.stream(stream)?);
        self.call("recording an event", |library| library.record_event(event, stream))
    }

    fn synchronize_event(&mut self, event: Id) -> Outcome<()> {
        let event = self.event(event)?;
        self.call("waiting for an event", |library| library.synchronize_event(event))
    }

    fn elapsed(&mut self, start: Id, end: Id) -> Outcome<f32> {
        let (start, end) = (self.event(start)?, self.event(end)?);
        self.call("measuring time", |library| library.elapsed(start, end))
    }
}
