#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::authenticode`.

labshift_fuzz::target!(authenticode);
