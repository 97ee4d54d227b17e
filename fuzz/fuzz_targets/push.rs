#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::push`.

labshift_fuzz::target!(push);
