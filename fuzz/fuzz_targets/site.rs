#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::site`.

labshift_fuzz::target!(site);
