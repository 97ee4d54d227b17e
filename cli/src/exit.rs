//! Exit codes that mean something, read off the error's chain.

use std::{io, process::ExitCode};

use labshift_model::fault::Faults;

/// A command failed for a reason that has its own exit code.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// The server does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The server or the system says no.
    #[error("{0}")]
    NoPermission(String),
}

/// 1 failed · 3 a file has mistakes · 4 not found · 5 no permission · 6 unreachable. clap itself exits with 2.
pub fn code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| {
        if cause.is::<Faults>() {
            return Some(3);
        }
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return Some(match refusal {
                Refusal::NotFound(_) => 4,
                Refusal::NoPermission(_) => 5,
                Refusal::Unreachable(_) => 6,
            });
        }
        match cause.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::NotFound => Some(4),
            io::ErrorKind::PermissionDenied => Some(5),
            _ => None,
        }
    });
    ExitCode::from(code.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides_however_deep_it_sits() {
        let debug = |e: anyhow::Error| format!("{:?}", code(&e));
        let deep =
            Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("reading x").context("building");
        assert_eq!(debug(deep.unwrap_err()), format!("{:?}", ExitCode::from(4)));
        assert_eq!(debug(anyhow::anyhow!("x")), format!("{:?}", ExitCode::from(1)));
        assert_eq!(debug(Refusal::Unreachable("no".into()).into()), format!("{:?}", ExitCode::from(6)));
    }
}
