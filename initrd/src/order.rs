//! In which order services start and stop. Pure.

use std::collections::{HashMap, HashSet};

use labshift_model::service::{MODULES, Restart, Service};

/// Where a service is in its life, as far as those that wait for it care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Never started.
    Waiting,
    /// Runs, not ready.
    Starting,
    /// Ready; or ended with success, for [`Restart::Never`].
    Up,
    /// Ended; starts again by itself, or never.
    Down,
}

/// Checks a list: unique names, known dependencies, no circle, absolute programs. `Err` holds every fault.
pub fn check(services: &[Service]) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    let mut names = HashSet::from([MODULES]);
    for service in services {
        if !names.insert(service.name.as_str()) {
            faults.push(format!("two services are called {}", service.name));
        }
        if !service.exec.first().is_some_and(|p| p.starts_with('/')) {
            faults.push(format!("service {} does not name its program by an absolute path", service.name));
        }
    }
    for service in services {
        for needed in service.after.iter().filter(|n| !names.contains(n.as_str())) {
            faults.push(format!("service {} waits for {needed}, which is not there", service.name));
        }
    }
    // What can never start, although all names are known, is in or behind a circle.
    let mut up: HashSet<&str> = HashSet::from([MODULES]);
    while let Some(next) = services
        .iter()
        .find(|s| !up.contains(s.name.as_str()) && s.after.iter().all(|n| up.contains(n.as_str())))
    {
        up.insert(&next.name);
    }
    if faults.is_empty() && up.len() <= services.len() {
        let stuck: Vec<_> = services.iter().map(|s| s.name.as_str()).filter(|n| !up.contains(n)).collect();
        faults.push(format!("services wait for one another in a circle: {}", stuck.join(", ")));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Services that may start now, by index; `modules`: the image's modules are loaded.
pub fn startable(services: &[Service], modules: bool, phase: impl Fn(usize) -> Phase) -> Vec<usize> {
    let index: HashMap<&str, usize> =
        services.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
    let up = |name: &String| match index.get(name.as_str()) {
        Some(&i) => phase(i) == Phase::Up,
        None => modules && name == MODULES,
    };
    (0..services.len()).filter(|&i| phase(i) == Phase::Waiting && services[i].after.iter().all(up)).collect()
}

/// Stop order: the reverse of an order in which they can start.
pub fn stop_order(services: &[Service]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    loop {
        let started = |i: usize| if order.contains(&i) { Phase::Up } else { Phase::Waiting };
        let next = startable(services, true, started);
        if next.is_empty() {
            break;
        }
        order.extend(next);
    }
    order.reverse();
    order
}

/// What follows the end of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has done its work.
    Done,
    /// It stays as it is.
    Stays,
    /// It starts again after a pause.
    Again,
    /// Its socket is listened at again.
    Listens,
}

/// What follows when a service ended; `wanted`: somebody has connected to its socket and was not taken. A program that ends in order
/// and leaves clients waiting would be started at once, again and again, so that is no better than a failing end.
pub fn next(service: &Service, success: bool, wanted: bool) -> Next {
    match service.restart {
        Restart::Never if success => Next::Done,
        Restart::Never => Next::Stays,
        _ if service.listen.is_some() && success && !wanted => Next::Listens,
        Restart::OnFailure if success && service.listen.is_none() => Next::Stays,
        Restart::Always | Restart::OnFailure => Next::Again,
    }
}

/// Milliseconds before start number `restarts` + 1: a quarter of a second, doubling up to half a minute. A service that ran for
/// a minute begins anew.
pub fn pause_ms(restarts_in_a_row: u32) -> u64 {
    (250u64 << restarts_in_a_row.min(7)).min(30_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, after: &[&str]) -> Service {
        Service {
            name: name.into(),
            exec: vec!["/bin/true".into()],
            after: after.iter().map(|a| (*a).into()).collect(),
            restart: Restart::Always,
            environment: vec![],
            user: None,
            ready: None,
            listen: None,
            tty: None,
            limits: Default::default(),
        }
    }

    #[test]
    fn dependencies_start_first_and_stop_last() {
        let services =
            [service("runtime", &["libvirtd"]), service("libvirtd", &["virtlogd"]), service("virtlogd", &[])];
        check(&services).unwrap();
        assert_eq!(startable(&services, true, |_| Phase::Waiting), [2]);
        assert_eq!(
            startable(&services, true, |i| if i == 2 { Phase::Starting } else { Phase::Waiting }),
            [0usize; 0]
        );
        assert_eq!(startable(&services, true, |i| if i == 2 { Phase::Up } else { Phase::Waiting }), [1]);
        assert_eq!(stop_order(&services), [0, 1, 2]);
        // Those that need modules wait for them, the others do not.
        let services = [service("libvirtd", &["virtlogd", "modules"]), service("virtlogd", &[])];
        check(&services).unwrap();
        let virtlogd_up = |i| if i == 1 { Phase::Up } else { Phase::Waiting };
        assert_eq!(startable(&services, false, |_| Phase::Waiting), [1]);
        assert_eq!(startable(&services, false, virtlogd_up), [0usize; 0]);
        assert_eq!(startable(&services, true, virtlogd_up), [0]);
        assert_eq!(stop_order(&services), [0, 1]);
        assert!(check(&[service("modules", &[])]).is_err());
    }

    #[test]
    fn every_fault_of_a_list_is_named() {
        let mut relative = service("a", &["nowhere"]);
        relative.exec = vec!["true".into()];
        let faults = check(&[relative, service("a", &[])]).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        let circle = check(&[service("a", &["b"]), service("b", &["a"]), service("c", &[])]).unwrap_err();
        assert!(circle[0].contains("circle: a, b"), "{circle:?}");
    }

    #[test]
    fn pauses_grow_and_policies_hold() {
        assert_eq!((pause_ms(0), pause_ms(3), pause_ms(99)), (250, 2_000, 30_000));
        let next = |restart, listen: bool, success, wanted| {
            let listen = listen.then(|| "/run/a".to_owned());
            next(&Service { restart, listen, ..service("a", &[]) }, success, wanted)
        };
        let (always, on_failure) = (Restart::Always, Restart::OnFailure);
        assert_eq!([next(always, false, true, false), next(always, false, false, false)], [Next::Again; 2]);
        assert_eq!(next(on_failure, false, true, false), Next::Stays);
        assert_eq!(next(on_failure, false, false, false), Next::Again);
        assert_eq!(next(Restart::Never, false, true, false), Next::Done);
        assert_eq!(next(Restart::Never, false, false, false), Next::Stays);
        assert_eq!(
            [next(always, true, true, false), next(on_failure, true, true, false)],
            [Next::Listens; 2]
        );
        for (success, wanted) in [(true, true), (false, false), (false, true)] {
            assert_eq!(
                [next(always, true, success, wanted), next(on_failure, true, success, wanted)],
                [Next::Again; 2]
            );
        }
    }
}
