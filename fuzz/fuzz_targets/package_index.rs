#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::package_index`.

labshift_fuzz::target!(package_index);
