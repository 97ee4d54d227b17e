#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::rcuda`.

labshift_fuzz::target!(rcuda);
