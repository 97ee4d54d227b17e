//! Which devices a server has: those of the driver, or one in software.

use std::path::{Path, PathBuf};

use crate::{
    device::{Device, DeviceError, Outcome, Status},
    driver,
    software::device::SoftwareDevice,
    wire::message::{DeviceInfo, Ordinal},
};

/// Where Linux distributions and container runtimes put the driver's library.
pub const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
];

/// Where devices come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One software device with so many bytes.
    Software {
        /// Bytes of memory.
        total: u64,
    },
    /// The driver's library, by absolute path.
    Driver {
        /// Path.
        library: PathBuf,
    },
}

/// The devices, ready to be opened.
pub enum Platform {
    /// Software.
    Software {
        /// Bytes of memory.
        total: u64,
        /// Moves its addresses.
        salt: u64,
    },
    /// Driver.
    Driver(driver::Driver),
}

impl Platform {
    /// Finds the devices.
    pub fn open(source: &Source, salt: u64) -> Outcome<Self> {
        match source {
            Source::Software { total } => Ok(Self::Software { total: *total, salt }),
            Source::Driver { library } => driver::Driver::open(library).map(Self::Driver),
        }
    }

    /// All devices by ordinal.
    pub fn devices(&self) -> Outcome<Vec<DeviceInfo>> {
        match self {
            Self::Software { total, .. } => Ok(vec![SoftwareDevice::description(*total)]),
            Self::Driver(driver) => driver.devices(),
        }
    }

    /// Opens one for a client.
    pub fn device(&self, ordinal: Ordinal) -> Outcome<Box<dyn Device>> {
        match self {
            Self::Software { total, salt } if ordinal == 0 => {
                Ok(Box::new(SoftwareDevice::new(*total, *salt)))
            }
            Self::Software { .. } => {
                Err(DeviceError::new(Status::InvalidDevice, format!("there is no device {ordinal}")))
            }
            Self::Driver(driver) => Ok(Box::new(driver.device(ordinal)?)),
        }
    }
}

/// The first driver library that exists.
pub fn installed_library() -> Option<PathBuf> {
    LIBRARIES.iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned)
}
