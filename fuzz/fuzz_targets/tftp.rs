#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::tftp`.

labshift_fuzz::target!(tftp);
