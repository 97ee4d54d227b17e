#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::ethernet_frame`.

labshift_fuzz::target!(ethernet_frame);
