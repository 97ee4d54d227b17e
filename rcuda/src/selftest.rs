//! A short program that shows that a device computes: `rcuda-smi --selftest`.

use crate::{
    client::{Client, ClientError, Shape},
    wire::message::Ordinal,
};

/// Adds two vectors.
pub const VECTOR_ADD: &str = include_str!("../kernels/vector-add.ptx");
const ELEMENTS: u32 = 4096;
const THREADS: u32 = 256;

/// What the self-test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Elements computed.
    pub elements: u32,
    /// The first element that is wrong: place, value, value that it should have.
    pub wrong: Option<(usize, f32, f32)>,
}

/// Adds two vectors on a device and compares every element with the sum computed here.
pub fn vector_add(client: &mut Client, device: Ordinal) -> Result<Outcome, ClientError> {
    let module = client.load_module(device, VECTOR_ADD)?;
    let bytes = u64::from(ELEMENTS) * 4;
    let a: Vec<f32> = (0..ELEMENTS).map(|i| i as f32 * 0.5).collect();
    let b: Vec<f32> = (0..ELEMENTS).map(|i| 1000.0 - i as f32).collect();
    let [to_a, to_b, to_c] =
        [client.allocate(device, bytes)?, client.allocate(device, bytes)?, client.allocate(device, bytes)?];
    client.write(device, to_a, &raw(&a), 0)?;
    client.write(device, to_b, &raw(&b), 0)?;
    let kernel = module.kernel("vector_add").ok_or(ClientError::Confused("a module without its kernel"))?;
    let arguments: [&[u8]; 4] =
        [&to_a.to_le_bytes(), &to_b.to_le_bytes(), &to_c.to_le_bytes(), &ELEMENTS.to_le_bytes()];
    client.launch(&module, kernel, Shape::line(ELEMENTS.div_ceil(THREADS), THREADS), &arguments)?;
    let mut result = vec![0; bytes as usize];
    client.read(device, to_c, &mut result, 0)?;
    for address in [to_a, to_b, to_c] {
        client.free(device, address)?;
    }
    client.unload_module(&module)?;
    let values = result.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw));
    let wrong = values
        .zip(a.iter().zip(&b))
        .map(|(value, (a, b))| (value, a + b))
        .enumerate()
        .find(|(_, (value, expected))| value != expected)
        .map(|(place, (value, expected))| (place, value, expected));
    Ok(Outcome { elements: ELEMENTS, wrong })
}

fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
