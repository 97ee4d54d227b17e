//! The node's daemon: network, guests, modes.
