//! A stand-in for the driver's library, for machines without a GPU: the C functions that the driver device calls,
//! by their public signatures, in front of the software device. So loading, calling conventions, parameter
//! blocks, handles and error numbers are tested against a real shared library.
#![allow(unsafe_code, reason = "a C interface has no other form")]
#![allow(clippy::missing_safety_doc, reason = "the driver API's own rules hold")]

use std::{
    ffi::{CStr, c_char, c_void},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use labshift_rcuda::{
    device::{Device, DeviceError, Dispatch, Loaded},
    software::device::SoftwareDevice,
};

const TOTAL: usize = 32 << 20;
type Raw = *mut c_void;

struct Driver {
    device: SoftwareDevice,
    used: usize,
    sizes: Vec<(u64, usize)>,
    modules: Vec<Loaded>,
    /// Module and kernel of each function.
    functions: Vec<(usize, usize)>,
    initialised: bool,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| {
    Mutex::new(Driver {
        device: SoftwareDevice::new(TOTAL as u64, 5),
        used: 0,
        sizes: vec![],
        modules: vec![],
        functions: vec![],
        initialised: false,
    })
});

fn driver() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn code(outcome: Result<(), DeviceError>) -> u32 {
    outcome.err().map_or(0, |error| error.status.code())
}

/// Writes a result, or gives its error.
unsafe fn give<T>(to: *mut T, outcome: Result<T, DeviceError>) -> u32 {
    match outcome {
        Ok(value) => {
            unsafe { to.write(value) };
            0
        }
        Err(error) => error.status.code(),
    }
}

fn handle(id: u64) -> Raw {
    std::ptr::without_provenance_mut(id as usize)
}

macro_rules! interface {
    ($(fn $name:ident($($argument:ident: $ty:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the driver API's name")]
        unsafe extern "C" fn $name($($argument: $ty),*) -> u32 $body
    )*};
}

interface! {
    fn cuInit(_flags: u32) {
        driver().initialised = true;
        0
    }
    fn cuDeviceGetCount(count: *mut i32) {
        if !driver().initialised {
            return 3;
        }
        unsafe { count.write(1) };
        0
    }
    fn cuDeviceGet(device: *mut i32, ordinal: i32) {
        if ordinal != 0 {
            return 101;
        }
        unsafe { device.write(7) };
        0
    }
    fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) {
        assert_eq!(device, 7);
        let text = c"stand-in device".to_bytes_with_nul();
        assert!(text.len() <= length as usize);
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        0
    }
    fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) {
        assert_eq!(device, 7);
        let found = driver().device.info().attributes.into_iter().find(|[number, _]| *number == attribute);
        let Some([_, found]) = found else { return 1 };
        unsafe { value.write(found) };
        0
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) {
        unsafe { bytes.write(TOTAL) };
        0
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], _device: i32) {
        unsafe { uuid.write([3; 16]) };
        0
    }
    fn cuDevicePrimaryCtxRetain(context: *mut Raw, device: i32) {
        assert_eq!(device, 7);
        unsafe { context.write(handle(99)) };
        0
    }
    fn cuCtxSetCurrent(context: Raw) {
        u32::from(context != handle(99)) * 201
    }
    fn cuCtxSynchronize() {
        code(driver().device.synchronize())
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        unsafe { (free.write(TOTAL - driver().used), total.write(TOTAL)) };
        0
    }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        let mut driver = driver();
        let outcome = driver.device.allocate(bytes as u64);
        if let Ok(address) = &outcome {
            driver.used += bytes;
            driver.sizes.push((*address, bytes));
        }
        unsafe { give(address, outcome) }
    }
    fn cuMemFree_v2(address: u64) {
        let mut driver = driver();
        let Some(place) = driver.sizes.iter().position(|(a, _)| *a == address) else { return 1 };
        let (_, bytes) = driver.sizes.remove(place);
        driver.used -= bytes;
        code(driver.device.free(address))
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Raw) {
        let data = unsafe { std::slice::from_raw_parts(from.cast(), bytes) };
        code(driver().device.write(to, data, stream as u64))
    }
    fn cuMemcpyDtoHAsync_v2(to: Raw, from: u64, bytes: usize, stream: Raw) {
        let data = unsafe { std::slice::from_raw_parts_mut(to.cast(), bytes) };
        code(driver().device.read(from, data, stream as u64))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Raw) {
        code(driver().device.copy(to, from, bytes as u64, stream as u64))
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Raw) {
        code(driver().device.fill(to, value.into(), 1, count as u64, stream as u64))
    }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Raw) {
        code(driver().device.fill(to, value.into(), 2, count as u64, stream as u64))
    }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Raw) {
        code(driver().device.fill(to, value, 4, count as u64, stream as u64))
    }
    fn cuModuleLoadData(module: *mut Raw, image: *const c_void) {
        let Ok(text) = unsafe { CStr::from_ptr(image.cast()) }.to_str() else { return 200 };
        let mut driver = driver();
        let outcome = driver.device.load(text).map(|loaded| {
            driver.modules.push(loaded);
            handle(driver.modules.len() as u64)
        });
        unsafe { give(module, outcome) }
    }
    fn cuModuleUnload(module: Raw) {
        let mut driver = driver();
        let id = driver.modules[module as usize - 1].module;
        code(driver.device.unload(id))
    }
    fn cuModuleGetFunction(function: *mut Raw, module: Raw, name: *const c_char) {
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let mut driver = driver();
        let module = module as usize - 1;
        let Some(kernel) = driver.modules[module].kernels.iter().position(|k| k.name == name) else { return 500 };
        driver.functions.push((module, kernel));
        unsafe { function.write(handle(driver.functions.len() as u64)) };
        0
    }
    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: Raw, name: *const c_char) {
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let driver = driver();
        let Some(symbol) = driver.modules[module as usize - 1].symbols.iter().find(|s| s.name == name) else {
            return 500;
        };
        unsafe { (address.write(symbol.address), bytes.write(symbol.bytes as usize)) };
        0
    }
    fn cuLaunchKernel(
        function: Raw, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared_bytes: u32, stream: Raw,
        parameters: *mut Raw, extra: *mut Raw
    ) {
        assert!(parameters.is_null());
        let extra: [Raw; 5] = unsafe { extra.cast::<[Raw; 5]>().read() };
        assert_eq!((extra[0] as usize, extra[2] as usize, extra[4] as usize), (1, 2, 0));
        let size = unsafe { extra[3].cast::<usize>().read() };
        let parameters = unsafe { std::slice::from_raw_parts(extra[1].cast::<u8>(), size) };
        let mut driver = driver();
        let (module, kernel) = driver.functions[function as usize - 1];
        let module = driver.modules[module].module;
        code(driver.device.launch(Dispatch {
            module, kernel, grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes, stream: stream as u64, parameters,
        }))
    }
    fn cuStreamCreate(stream: *mut Raw, _flags: u32) {
        unsafe { give(stream, driver().device.create_stream().map(handle)) }
    }
    fn cuStreamDestroy_v2(stream: Raw) {
        code(driver().device.destroy_stream(stream as u64))
    }
    fn cuStreamSynchronize(stream: Raw) {
        code(driver().device.synchronize_stream(stream as u64))
    }
    fn cuStreamQuery(_stream: Raw) {
        // Never done, to see that the answer is an answer and no error.
        600
    }
    fn cuEventCreate(event: *mut Raw, _flags: u32) {
        unsafe { give(event, driver().device.create_event().map(handle)) }
    }
    fn cuEventDestroy_v2(event: Raw) {
        code(driver().device.destroy_event(event as u64))
    }
    fn cuEventRecord(event: Raw, stream: Raw) {
        code(driver().device.record_event(event as u64, stream as u64))
    }
    fn cuEventSynchronize(event: Raw) {
        code(driver().device.synchronize_event(event as u64))
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: Raw, end: Raw) {
        unsafe { give(milliseconds, driver().device.elapsed(start as u64, end as u64)) }
    }
    fn cuGetErrorName(code: u32, name: *mut *const c_char) {
        let text = match code {
            2 => c"CUDA_ERROR_OUT_OF_MEMORY",
            218 => c"CUDA_ERROR_INVALID_PTX",
            700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
            _ => return 1,
        };
        unsafe { name.write(text.as_ptr()) };
        0
    }
}
