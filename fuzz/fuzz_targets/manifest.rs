#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::manifest`.

labshift_fuzz::target!(manifest);
