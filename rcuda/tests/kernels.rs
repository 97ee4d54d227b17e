//! Whole kernels on the software device against the same sums done here.

use labshift_rcuda::{
    device::{Device, DeviceError, Dispatch, Loaded},
    selftest::VECTOR_ADD,
    software::device::SoftwareDevice,
};

type Outcome = Result<(), DeviceError>;

/// Numbers without a pattern, the same in each run.
fn noise(count: u32) -> Vec<u32> {
    let mut state = 0x2545_f491u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..count).map(|_| next()).collect()
}

struct Bench {
    device: SoftwareDevice,
    module: Loaded,
}

impl Bench {
    fn new(ptx: &str) -> Result<Self, DeviceError> {
        let mut device = SoftwareDevice::new(64 << 20, 7);
        let module = device.load(ptx)?;
        Ok(Self { device, module })
    }

    fn put(&mut self, words: &[u32]) -> Result<u64, DeviceError> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let address = self.device.allocate(bytes.len() as u64)?;
        self.device.write(address, &bytes, 0)?;
        Ok(address)
    }

    fn get(&mut self, address: u64, words: usize) -> Result<Vec<u32>, DeviceError> {
        let mut bytes = vec![0; words * 4];
        self.device.read(address, &mut bytes, 0)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect())
    }

    fn launch(
        &mut self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        arguments: &[u64],
    ) -> Outcome {
        let place = self.module.kernels.iter().position(|k| k.name == kernel).unwrap_or(usize::MAX);
        let layout = self.module.kernels[place].parameters.clone();
        assert_eq!(layout.len(), arguments.len());
        let mut parameters = Vec::new();
        for ([offset, size], argument) in layout.iter().zip(arguments) {
            parameters.resize(*offset as usize, 0);
            parameters.extend_from_slice(&argument.to_le_bytes()[..*size as usize]);
        }
        self.device.launch(Dispatch {
            module: self.module.module,
            kernel: place,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            stream: 0,
            parameters: &parameters,
        })
    }
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|w| (w % 1000) as f32 * 0.25).collect()
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|f| f.to_bits()).collect()
}

#[test]
fn vector_add() -> Outcome {
    let mut bench = Bench::new(VECTOR_ADD)?;
    let (a, b) = (floats(&noise(1000)), floats(&noise(2000)[1000..]));
    let (to_a, to_b, to_c) = (bench.put(&bits(&a))?, bench.put(&bits(&b))?, bench.put(&[u32::MAX; 1001])?);
    bench.launch("vector_add", 4, 256, 0, &[to_a, to_b, to_c, 1000])?;
    let mut expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    expected.push(f32::from_bits(u32::MAX));
    assert_eq!(bench.get(to_c, 1001)?, bits(&expected));
    Ok(())
}

#[test]
fn saxpy() -> Outcome {
    let mut bench = Bench::new(include_str!("../kernels/saxpy.ptx"))?;
    let (x, y) = (floats(&noise(777)), floats(&noise(1554)[777..]));
    let (to_x, to_y) = (bench.put(&bits(&x))?, bench.put(&bits(&y))?);
    // Fewer threads than elements: each does several.
    bench.launch("saxpy", 2, 96, 0, &[2.5f32.to_bits().into(), to_x, to_y, 777])?;
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.5f32.mul_add(*x, *y)).collect();
    assert_eq!(bench.get(to_y, 777)?, bits(&expected));
    Ok(())
}

#[test]
fn reduction_in_shared_memory() -> Outcome {
    let mut bench = Bench::new(include_str!("../kernels/reduce.ptx"))?;
    let input = noise(1000);
    let (from, to) = (bench.put(&input)?, bench.put(&[0; 8])?);
    bench.launch("reduce_shared", 8, 128, 128 * 4, &[from, to, 1000])?;
    let expected: Vec<u32> =
        input.chunks(128).map(|c| c.iter().fold(0u32, |s, v| s.wrapping_add(*v))).collect();
    assert_eq!(bench.get(to, 8)?, expected);
    Ok(())
}

#[test]
fn reduction_by_shuffles() -> Outcome {
    let mut bench = Bench::new(include_str!("../kernels/reduce.ptx"))?;
    let input = noise(5000);
    let (from, to) = (bench.put(&input)?, bench.put(&[0])?);
    bench.launch("reduce_shuffle", 20, 256, 0, &[from, to, 5000])?;
    assert_eq!(bench.get(to, 1)?, [input.iter().fold(0u32, |s, v| s.wrapping_add(*v))]);
    Ok(())
}

#[test]
fn histogram_in_a_module_variable() -> Outcome {
    let mut bench = Bench::new(include_str!("../kernels/histogram.ptx"))?;
    let input = noise(1025);
    let from = bench.put(&input)?;
    bench.launch("histogram", 17, 256, 0, &[from, 4100])?;
    let mut expected = vec![0; 256];
    for byte in input.iter().flat_map(|w| w.to_le_bytes()) {
        expected[usize::from(byte)] += 1;
    }
    let counters = bench.module.symbols.iter().find(|s| s.name == "counters").map_or(0, |s| s.address);
    assert_eq!(bench.get(counters, 256)?, expected);
    Ok(())
}

#[test]
fn launches_that_no_device_takes() -> Outcome {
    let mut bench = Bench::new(VECTOR_ADD)?;
    for (blocks, threads, shared) in [(0, 1, 0), (1, 0, 0), (1, 1025, 0), (1, 1, 48 * 1024 + 1)] {
        assert!(bench.launch("vector_add", blocks, threads, shared, &[0; 4]).is_err());
    }
    Ok(())
}

/// Kernels with bytes changed at random: refused, stopped, or run; never a panic, never an access outside.
#[test]
fn mutated_kernels_do_no_harm() {
    let seeds = [
        VECTOR_ADD,
        include_str!("../kernels/saxpy.ptx"),
        include_str!("../kernels/reduce.ptx"),
        include_str!("../kernels/histogram.ptx"),
    ];
    let mut noise = noise(400_000).into_iter();
    let mut below = |bound: usize| noise.next().unwrap_or(0) as usize % bound;
    let (mut parsed, mut ran) = (0, 0);
    for round in 0..20_000 {
        let mut text = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..=below(2) {
            let at = below(text.len());
            match below(4) {
                0 => text[at] = b' ' + below(95) as u8,
                1 => _ = text.remove(at),
                2 => text.insert(at, b' ' + below(95) as u8),
                // A digit: registers, offsets and sizes change, the text stays readable.
                _ => {
                    let digits: Vec<usize> = (0..text.len()).filter(|i| text[*i].is_ascii_digit()).collect();
                    text[digits[below(digits.len())]] = b'0' + below(10) as u8;
                }
            }
        }
        let text = String::from_utf8_lossy(&text);
        let Ok(module) = labshift_rcuda::ptx::parser::parse(&text) else { continue };
        parsed += 1;
        for kernel in &module.kernels {
            let mut memory = labshift_rcuda::software::memory::Memory::new(0);
            let Some(data) = memory.allocate(4096) else { panic!("no memory") };
            let variables: Vec<u64> = module.variables.iter().map(|_| data).collect();
            let mut parameters = vec![0; kernel.parameter_bytes as usize];
            for (place, parameter) in parameters.chunks_exact_mut(8).zip([data, data + 512, data + 1024]) {
                place.copy_from_slice(&parameter.to_le_bytes());
            }
            let outcome = labshift_rcuda::software::machine::run(
                labshift_rcuda::software::machine::Grid {
                    kernel,
                    variables: &variables,
                    parameters: &parameters,
                    grid: [2, 1, 1],
                    block: [40, 1, 1],
                    dynamic_shared: 256,
                    step_limit: 20_000,
                },
                &mut memory,
            );
            ran += u32::from(outcome.is_ok());
        }
    }
    assert!(parsed > 2000 && ran > 500, "the loop must reach the machine: {parsed} parsed, {ran} ran");
}
