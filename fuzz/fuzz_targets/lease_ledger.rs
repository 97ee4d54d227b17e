#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::lease_ledger`.

labshift_fuzz::target!(lease_ledger);
