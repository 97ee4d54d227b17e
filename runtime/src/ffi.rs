//! Calls for which no safe binding exists: KVM's ioctls, and the few libvirt calls that the `virt` crate lacks.
//! The only module of this crate with `unsafe` code.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_int, c_void},
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use tokio::sync::mpsc::UnboundedSender;
use virt::{connect::Connect, domain::Domain, error::Error};

/// `linux/kvm.h`; none of the three takes a structure.
mod kvm {
    nix::ioctl_write_int_bad!(get_api_version, nix::request_code_none!(0xAE, 0x00));
    nix::ioctl_write_int_bad!(create_vm, nix::request_code_none!(0xAE, 0x01));
    nix::ioctl_write_int_bad!(create_vcpu, nix::request_code_none!(0xAE, 0x41));
}

/// KVM's stable API version.
const KVM_API_VERSION: c_int = 12;

/// Creates a virtual machine with one vCPU and drops both: the only proof that KVM works. The error names the
/// call that failed.
pub fn try_kvm(device: &Path) -> Result<(), String> {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|e| format!("{}: {e}", device.display()))?;
    // SAFETY: the requests take an integer and return a number or a new descriptor, which is owned at once.
    unsafe {
        let version =
            kvm::get_api_version(kvm.as_raw_fd(), 0).map_err(|e| format!("KVM_GET_API_VERSION: {e}"))?;
        if version != KVM_API_VERSION {
            return Err(format!("KVM speaks API {version}, not {KVM_API_VERSION}"));
        }
        let vm = kvm::create_vm(kvm.as_raw_fd(), 0).map_err(|e| format!("KVM_CREATE_VM: {e}"))?;
        let vm = OwnedFd::from_raw_fd(vm);
        let vcpu = kvm::create_vcpu(vm.as_raw_fd(), 0).map_err(|e| format!("KVM_CREATE_VCPU: {e}"))?;
        drop(OwnedFd::from_raw_fd(vcpu));
    }
    Ok(())
}

/// Saves a running or paused domain to a file; a restore lets it run.
pub fn save(domain: &Domain, path: &Path) -> Result<(), Error> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // SAFETY: the domain pointer lives as long as `domain`; libvirt copies the path.
    let result = unsafe {
        virt_sys::virDomainSaveFlags(
            domain.as_ptr(),
            path.as_ptr(),
            std::ptr::null(),
            virt_sys::VIR_DOMAIN_SAVE_RUNNING,
        )
    };
    if result == -1 { Err(Error::last_error()) } else { Ok(()) }
}

/// A connected socket to the domain's first graphics server (RFC 6143), without its authentication.
pub fn open_graphics(domain: &Domain) -> Result<OwnedFd, Error> {
    // SAFETY: the domain pointer lives as long as `domain`; the returned descriptor is ours alone.
    unsafe {
        let fd = virt_sys::virDomainOpenGraphicsFD(
            domain.as_ptr(),
            0,
            virt_sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH,
        );
        if fd == -1 { Err(Error::last_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Sends the name of a domain whenever its life changes, until the connection closes.
pub fn watch_domains(connection: &Connect, sender: UnboundedSender<String>) -> Result<(), Error> {
    unsafe extern "C" fn changed(
        _: virt_sys::virConnectPtr,
        domain: virt_sys::virDomainPtr,
        _event: c_int,
        _detail: c_int,
        opaque: *mut c_void,
    ) -> c_int {
        // SAFETY: `opaque` is the sender boxed below, freed only by `forget`; libvirt lends a live domain.
        unsafe {
            let name = virt_sys::virDomainGetName(domain);
            if !name.is_null() {
                let sender = &*opaque.cast::<UnboundedSender<String>>();
                // The receiver is gone only when the daemon ends.
                let _ = sender.send(CStr::from_ptr(name).to_string_lossy().into_owned());
            }
        }
        0
    }
    unsafe extern "C" fn forget(opaque: *mut c_void) {
        // SAFETY: libvirt calls this once, with the box made below.
        drop(unsafe { Box::from_raw(opaque.cast::<UnboundedSender<String>>()) });
    }
    type Lifecycle = unsafe extern "C" fn(
        virt_sys::virConnectPtr,
        virt_sys::virDomainPtr,
        c_int,
        c_int,
        *mut c_void,
    ) -> c_int;
    type Generic = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);

    let opaque = Box::into_raw(Box::new(sender));
    // SAFETY: libvirt's API takes every callback as the generic type and calls it with the arguments of its event.
    let result = unsafe {
        virt_sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            std::ptr::null_mut(),
            virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(std::mem::transmute::<Lifecycle, Generic>(changed)),
            opaque.cast(),
            Some(forget),
        )
    };
    if result == -1 {
        // SAFETY: libvirt took no ownership.
        drop(unsafe { Box::from_raw(opaque) });
        return Err(Error::last_error());
    }
    Ok(())
}
