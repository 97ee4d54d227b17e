//! Remote CUDA: protocol, node server, software device.
