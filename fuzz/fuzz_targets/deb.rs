#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::deb`.

labshift_fuzz::target!(deb);
