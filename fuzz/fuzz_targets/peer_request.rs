#![cfg_attr(fuzzing, no_main)]
//! Fuzz target of `labshift_fuzz::peer_request`.

labshift_fuzz::target!(peer_request);
