#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::lock`.

labshift_fuzz::target!(lock);
