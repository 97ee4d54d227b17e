#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::kernel_cmdline`.

labshift_fuzz::target!(kernel_cmdline);
