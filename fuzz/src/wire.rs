//! What a guest sends to its host.

use labshift_rcuda::{
    ptx::parser,
    wire::{frame, message::Request},
};
use labshift_runtime::kiosk::rfb;

/// A CUDA client's connection: hello, then requests.
pub fn rcuda(bytes: &[u8]) {
    let mut stream = bytes;
    if frame::receive_hello(&mut stream).is_ok() {
        while frame::receive::<_, Request>(&mut stream).is_ok() {}
    }
}

/// Device code.
pub fn ptx(bytes: &[u8]) {
    drop(parser::parse(&String::from_utf8_lossy(bytes)));
}

/// A guest's screen: the picture does not depend on how the stream was cut.
pub fn rfb(bytes: &[u8]) {
    let (mut whole, mut cut) = (rfb::Client::new(), rfb::Client::new());
    let first = whole.feed(bytes, &mut vec![]).is_ok();
    let second = bytes.chunks(7).all(|part| cut.feed(part, &mut vec![]).is_ok());
    assert_eq!(first, second);
    if first {
        assert_eq!(whole.output(), cut.output());
    }
}
