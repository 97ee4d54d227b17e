//! What the machine has.

use std::path::Path;

use labshift_model::node::Facts;

use crate::ffi;

/// Reads the machine's facts; KVM counts only when a virtual machine could really be created. The second value
/// says why KVM does not work.
pub fn read() -> (Facts, Option<String>) {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kvm = ffi::try_kvm(Path::new("/dev/kvm"));
    let facts = Facts {
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_mib: memory_mib(&text("/proc/meminfo")),
        kvm: kvm.is_ok(),
        cpu_model: cpu_model(&text("/proc/cpuinfo")),
    };
    (facts, kvm.err())
}

/// `MemTotal` of `/proc/meminfo`, in MiB.
fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

/// First `model name` of `/proc/cpuinfo`.
fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map_or_else(|| "unknown".into(), |(_, model)| model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        assert_eq!(memory_mib("MemTotal:        3056984 kB\nMemFree: 1 kB\n"), 2985);
        assert_eq!(memory_mib("nothing"), 0);
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"), "A CPU @ 2 GHz");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn a_file_that_is_not_kvm_is_refused_with_the_call_that_failed() {
        assert!(ffi::try_kvm(Path::new("/dev/null")).unwrap_err().starts_with("KVM_GET_API_VERSION"));
        assert!(ffi::try_kvm(Path::new("/nowhere/kvm")).unwrap_err().starts_with("/nowhere/kvm"));
    }
}
