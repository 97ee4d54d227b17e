#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::dhcp_server`.

labshift_fuzz::target!(dhcp_server);
