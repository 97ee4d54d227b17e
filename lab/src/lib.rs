//! The virtual lab: workstations in QEMU behind a switch.
