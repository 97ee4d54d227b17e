#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::capture`.

labshift_fuzz::target!(capture);
