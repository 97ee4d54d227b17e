#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::module_index`.

labshift_fuzz::target!(module_index);
