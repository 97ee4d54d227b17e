//! The boot plane as its clients see it: packets in, packets out. Names carry the numbers of the protocol cases that
//! they cover; `dhcproto` writes the requests and reads the replies, so that our own reader is not judged by itself.

mod dhcp;
mod fake;
mod firmware;
mod hostile;
mod http;
mod namespace;
mod tftp;
