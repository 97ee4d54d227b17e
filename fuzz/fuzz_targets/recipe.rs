#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::recipe`.

labshift_fuzz::target!(recipe);
