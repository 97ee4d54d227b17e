#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::rfb`.

labshift_fuzz::target!(rfb);
