//! PID 1 of a node and of its guests.
