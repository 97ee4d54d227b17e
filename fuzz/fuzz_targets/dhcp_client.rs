#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::dhcp_client`.

labshift_fuzz::target!(dhcp_client);
