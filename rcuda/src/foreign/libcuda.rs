//! The driver's library: public functions of the CUDA driver API, found by name at run time.
//!
//! The signatures are written by hand from NVIDIA's public reference. The functions here are safe to call
//! because the handles they take can only come from the functions that make them, and the device checks its own
//! addresses.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::Path,
    ptr,
};

use thiserror::Error;

/// A driver's error number (`CUresult`, not 0).
pub type Code = u32;
type Raw = *mut c_void;

/// Why the library can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(dead_code, reason = "the static and the dynamic build each make some of them")]
pub enum LibraryError {
    /// This program can't load libraries at all.
    #[error(
        "this rcuda-server is linked statically and can't load {0}; use the dynamic build, or --software"
    )]
    Static(String),
    /// The path is not absolute: the loader would search for it.
    #[error("{0} is no absolute path")]
    Relative(String),
    /// The loader said no.
    #[error("loading the driver's library failed: {0}")]
    Load(String),
    /// The library is too old or is something else.
    #[error("{library} has no function {function}; a driver for CUDA 11 or later is needed")]
    Missing {
        /// Path.
        library: String,
        /// Name.
        function: &'static str,
    },
}

macro_rules! handles {
    ($($(#[$meta:meta])* $name:ident,)*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(Raw);
    )*};
}
handles! {
    /// `CUcontext`.
    Context,
    /// `CUmodule`.
    Module,
    /// `CUfunction`.
    Function,
    /// `CUstream`.
    Stream,
    /// `CUevent`.
    Event,
}

impl Stream {
    /// The default stream.
    pub const DEFAULT: Self = Self(ptr::null_mut());
}

#[cfg(not(target_feature = "crt-static"))]
fn load(path: &Path) -> Result<Raw, LibraryError> {
    let text = path.display().to_string();
    let name =
        CString::new(text.as_bytes()).map_err(|_| LibraryError::Load(format!("{text:?} is no path")))?;
    // SAFETY: the name is a C string; the library's initialisers run, which is what was asked for.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        // SAFETY: dlerror returns a C string or null, valid until the next call on this thread.
        let text = unsafe {
            let text = libc::dlerror();
            if text.is_null() {
                "unknown".into()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        return Err(LibraryError::Load(text));
    }
    Ok(library)
}

#[cfg(not(target_feature = "crt-static"))]
fn symbol(library: Raw, name: &CStr) -> Raw {
    // SAFETY: the library is loaded and stays so; the name is a C string.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

// A static program has no loader to ask: glibc's dlopen would want the very glibc it was linked with.
#[cfg(target_feature = "crt-static")]
fn load(path: &Path) -> Result<Raw, LibraryError> {
    Err(LibraryError::Static(path.display().to_string()))
}

#[cfg(target_feature = "crt-static")]
fn symbol(_library: Raw, _name: &CStr) -> Raw {
    ptr::null_mut()
}

macro_rules! functions {
    ($($function:ident = $symbol:literal ($($argument:ty),*);)*) => {
        #[derive(Debug, Clone, Copy)]
        struct Functions { $($function: unsafe extern "C" fn($($argument),*) -> Code,)* }

        impl Functions {
            fn find(library: Raw, path: &Path) -> Result<Self, LibraryError> {
                Ok(Self { $($function: {
                    let function = CString::new($symbol).ok().map_or(ptr::null_mut(), |name| symbol(library, &name));
                    if function.is_null() {
                        let library = path.display().to_string();
                        return Err(LibraryError::Missing { library, function: $symbol });
                    }
                    // SAFETY: not null, and the driver API gives this name this signature.
                    unsafe { std::mem::transmute::<Raw, unsafe extern "C" fn($($argument),*) -> Code>(function) }
                },)* })
            }
        }
    };
}

functions! {
    init = "cuInit"(u32);
    device_count = "cuDeviceGetCount"(*mut i32);
    device_get = "cuDeviceGet"(*mut i32, i32);
    device_name = "cuDeviceGetName"(*mut c_char, i32, i32);
    device_attribute = "cuDeviceGetAttribute"(*mut i32, i32, i32);
    device_total = "cuDeviceTotalMem_v2"(*mut usize, i32);
    device_uuid = "cuDeviceGetUuid"(*mut [u8; 16], i32);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut Raw, i32);
    context_current = "cuCtxSetCurrent"(Raw);
    context_synchronize = "cuCtxSynchronize"();
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    memory_allocate = "cuMemAlloc_v2"(*mut u64, usize);
    memory_free = "cuMemFree_v2"(u64);
    copy_in = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Raw);
    copy_out = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Raw);
    copy_inside = "cuMemcpyDtoDAsync_v2"(u64, u64, usize, Raw);
    fill_8 = "cuMemsetD8Async"(u64, u8, usize, Raw);
    fill_16 = "cuMemsetD16Async"(u64, u16, usize, Raw);
    fill_32 = "cuMemsetD32Async"(u64, u32, usize, Raw);
    module_load = "cuModuleLoadData"(*mut Raw, *const c_void);
    module_unload = "cuModuleUnload"(Raw);
    module_function = "cuModuleGetFunction"(*mut Raw, Raw, *const c_char);
    module_global = "cuModuleGetGlobal_v2"(*mut u64, *mut usize, Raw, *const c_char);
    launch = "cuLaunchKernel"(Raw, u32, u32, u32, u32, u32, u32, u32, Raw, *mut Raw, *mut Raw);
    stream_create = "cuStreamCreate"(*mut Raw, u32);
    stream_destroy = "cuStreamDestroy_v2"(Raw);
    stream_synchronize = "cuStreamSynchronize"(Raw);
    stream_query = "cuStreamQuery"(Raw);
    event_create = "cuEventCreate"(*mut Raw, u32);
    event_destroy = "cuEventDestroy_v2"(Raw);
    event_record = "cuEventRecord"(Raw, Raw);
    event_synchronize = "cuEventSynchronize"(Raw);
    event_elapsed = "cuEventElapsedTime"(*mut f32, Raw, Raw);
    error_name = "cuGetErrorName"(Code, *mut *const c_char);
}

/// The loaded library. It stays loaded until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    functions: &'static Functions,
}

fn check(code: Code) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// Calls a function that writes its result through its first argument.
macro_rules! made {
    ($start:expr, |$out:ident| $call:expr) => {{
        let mut value = $start;
        let $out = &raw mut value;
        // SAFETY: the out pointer is valid for the call, and all other arguments are values or valid handles.
        check(unsafe { $call })?;
        Ok(value)
    }};
}

/// Calls a function that returns nothing but its code.
macro_rules! done {
    ($call:expr) => {
        // SAFETY: all arguments are values, valid handles, or pointers to live slices with their lengths.
        check(unsafe { $call })
    };
}

#[allow(missing_docs, reason = "one call each, described by the driver API's reference under its own name")]
impl Library {
    /// Loads the library from an absolute path.
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        if !path.is_absolute() {
            return Err(LibraryError::Relative(path.display().to_string()));
        }
        let library = load(path)?;
        Ok(Self { functions: Box::leak(Box::new(Functions::find(library, path)?)) })
    }

    pub fn init(&self) -> Result<(), Code> {
        done!((self.functions.init)(0))
    }

    pub fn device_count(&self) -> Result<i32, Code> {
        made!(0, |out| (self.functions.device_count)(out))
    }

    pub fn device(&self, ordinal: i32) -> Result<i32, Code> {
        made!(0, |out| (self.functions.device_get)(out, ordinal))
    }

    pub fn device_name(&self, device: i32) -> Result<String, Code> {
        let mut name = [0u8; 256];
        done!((self.functions.device_name)(name.as_mut_ptr().cast(), 255, device))?;
        Ok(CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned())
    }

    pub fn device_attribute(&self, device: i32, attribute: i32) -> Result<i32, Code> {
        made!(0, |out| (self.functions.device_attribute)(out, attribute, device))
    }

    pub fn device_total(&self, device: i32) -> Result<usize, Code> {
        made!(0, |out| (self.functions.device_total)(out, device))
    }

    pub fn device_uuid(&self, device: i32) -> Result<[u8; 16], Code> {
        made!([0; 16], |out| (self.functions.device_uuid)(out, device))
    }

    pub fn retain_context(&self, device: i32) -> Result<Context, Code> {
        let raw: Result<Raw, Code> =
            made!(ptr::null_mut(), |out| (self.functions.context_retain)(out, device));
        raw.map(Context)
    }

    pub fn set_context(&self, context: Context) -> Result<(), Code> {
        done!((self.functions.context_current)(context.0))
    }

    pub fn synchronize(&self) -> Result<(), Code> {
        done!((self.functions.context_synchronize)())
    }

    /// Free and total bytes of the current device.
    pub fn memory_info(&self) -> Result<(usize, usize), Code> {
        let (mut free, mut total) = (0, 0);
        done!((self.functions.memory_info)(&raw mut free, &raw mut total))?;
        Ok((free, total))
    }

    pub fn allocate(&self, bytes: usize) -> Result<u64, Code> {
        made!(0, |out| (self.functions.memory_allocate)(out, bytes))
    }

    pub fn free(&self, address: u64) -> Result<(), Code> {
        done!((self.functions.memory_free)(address))
    }

    /// Copies to the device. The driver has taken pageable memory over when it returns.
    pub fn write(&self, address: u64, data: &[u8], stream: Stream) -> Result<(), Code> {
        done!((self.functions.copy_in)(address, data.as_ptr().cast(), data.len(), stream.0))
    }

    /// Copies from the device and waits for it.
    pub fn read(&self, address: u64, data: &mut [u8], stream: Stream) -> Result<(), Code> {
        done!((self.functions.copy_out)(data.as_mut_ptr().cast(), address, data.len(), stream.0))?;
        self.synchronize_stream(stream)
    }

    pub fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<(), Code> {
        done!((self.functions.copy_inside)(to, from, bytes, stream.0))
    }

    pub fn fill(
        &self,
        address: u64,
        value: u32,
        width: u8,
        count: usize,
        stream: Stream,
    ) -> Result<(), Code> {
        match width {
            1 => done!((self.functions.fill_8)(address, value as u8, count, stream.0)),
            2 => done!((self.functions.fill_16)(address, value as u16, count, stream.0)),
            _ => done!((self.functions.fill_32)(address, value, count, stream.0)),
        }
    }

    pub fn load_module(&self, ptx: &CStr) -> Result<Module, Code> {
        let raw: Result<Raw, Code> =
            made!(ptr::null_mut(), |out| (self.functions.module_load)(out, ptx.as_ptr().cast()));
        raw.map(Module)
    }

    pub fn unload_module(&self, module: Module) -> Result<(), Code> {
        done!((self.functions.module_unload)(module.0))
    }

    pub fn function(&self, module: Module, name: &CStr) -> Result<Function, Code> {
        let raw: Result<Raw, Code> =
            made!(ptr::null_mut(), |out| (self.functions.module_function)(out, module.0, name.as_ptr()));
        raw.map(Function)
    }

    /// Address and bytes of a module's variable.
    pub fn global(&self, module: Module, name: &CStr) -> Result<(u64, usize), Code> {
        let (mut address, mut bytes) = (0, 0);
        done!((self.functions.module_global)(&raw mut address, &raw mut bytes, module.0, name.as_ptr()))?;
        Ok((address, bytes))
    }

    /// Launches with a parameter block that has the size of the function's layout.
    pub fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        stream: Stream,
        parameters: &[u8],
    ) -> Result<(), Code> {
        // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE and CU_LAUNCH_PARAM_END.
        let mut size = parameters.len();
        let mut extra: [Raw; 5] = [
            ptr::without_provenance_mut(1),
            parameters.as_ptr().cast_mut().cast(),
            ptr::without_provenance_mut(2),
            (&raw mut size).cast(),
            ptr::null_mut(),
        ];
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        let extra = extra.as_mut_ptr();
        done!((self.functions.launch)(
            function.0,
            gx,
            gy,
            gz,
            bx,
            by,
            bz,
            shared_bytes,
            stream.0,
            ptr::null_mut(),
            extra
        ))
    }

    pub fn create_stream(&self) -> Result<Stream, Code> {
        let raw: Result<Raw, Code> = made!(ptr::null_mut(), |out| (self.functions.stream_create)(out, 0));
        raw.map(Stream)
    }

    pub fn destroy_stream(&self, stream: Stream) -> Result<(), Code> {
        done!((self.functions.stream_destroy)(stream.0))
    }

    pub fn synchronize_stream(&self, stream: Stream) -> Result<(), Code> {
        done!((self.functions.stream_synchronize)(stream.0))
    }

    pub fn query_stream(&self, stream: Stream) -> Result<(), Code> {
        done!((self.functions.stream_query)(stream.0))
    }

    pub fn create_event(&self) -> Result<Event, Code> {
        let raw: Result<Raw, Code> = made!(ptr::null_mut(), |out| (self.functions.event_create)(out, 0));
        raw.map(Event)
    }

    pub fn destroy_event(&self, event: Event) -> Result<(), Code> {
        done!((self.functions.event_destroy)(event.0))
    }

    pub fn record_event(&self, event: Event, stream: Stream) -> Result<(), Code> {
        done!((self.functions.event_record)(event.0, stream.0))
    }

    pub fn synchronize_event(&self, event: Event) -> Result<(), Code> {
        done!((self.functions.event_synchronize)(event.0))
    }

    pub fn elapsed(&self, start: Event, end: Event) -> Result<f32, Code> {
        made!(0.0, |out| (self.functions.event_elapsed)(out, start.0, end.0))
    }

    /// Name of an error, such as `CUDA_ERROR_OUT_OF_MEMORY`.
    pub fn error_name(&self, code: Code) -> String {
        let found: Result<*const c_char, Code> = made_name(self, code);
        match found {
            // SAFETY: the driver returned a C string that lives as long as the library.
            Ok(name) if !name.is_null() => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            _ => format!("error {code}"),
        }
    }
}

fn made_name(library: &Library, code: Code) -> Result<*const c_char, Code> {
    made!(ptr::null(), |out| (library.functions.error_name)(code, out))
}
