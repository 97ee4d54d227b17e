//! `labshift image`.
use std::path::{Path, PathBuf};
use anyhow::Result;
use crate::args::Sources;
pub fn build_all(_recipes: &[PathBuf], _store: &Path, _locked: Option<&Path>, _programs: Option<&Path>, _sources: &Sources, _json: bool) -> Result<()> {
    Ok(())
}
