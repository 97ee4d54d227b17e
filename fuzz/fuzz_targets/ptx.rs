#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::ptx`.

labshift_fuzz::target!(ptx);
