#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::release`.

labshift_fuzz::target!(release);
