//! End-to-end tests on real firmware and real libvirt.
