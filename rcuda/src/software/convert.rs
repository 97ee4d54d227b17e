//! `cvt`: between integers and floats of all widths.

use super::alu::{double, flushed, from_double, from_single, number, range, single, unsigned};
use crate::ptx::instruction::{Finish, Rounding, Type};

/// `cvt`.
pub fn convert(to: Type, from: Type, rounding: Rounding, a: u64, finish: Finish) -> u64 {
    let float = match from {
        Type::F32 => f64::from(flushed(single(a), finish)),
        Type::F64 => double(a),
        _ => return from_integer(to, number(from, a), finish),
    };
    let whole = match rounding {
        Rounding::Plain => float,
        Rounding::Nearest => float.round_ties_even(),
        Rounding::Zero => float.trunc(),
        Rounding::Down => float.floor(),
        Rounding::Up => float.ceil(),
    };
    match to {
        Type::F32 if from == Type::F32 && whole.is_nan() && !finish.saturate => u64::from(a as u32),
        Type::F32 => from_single(whole as f32, finish),
        Type::F64 => from_double(whole, finish),
        _ if whole.is_nan() => {
            if from == Type::F64 || to.bits() == 64 {
                1 << (to.bits() - 1)
            } else {
                0
            }
        }
        _ => {
            // `as` keeps to the range of i128, which holds every target's.
            let (low, high) = range(to);
            unsigned(to, (whole as i128).clamp(low, high) as u64)
        }
    }
}

fn from_integer(to: Type, value: i128, finish: Finish) -> u64 {
    match to {
        Type::F32 => from_single(value as f32, finish),
        Type::F64 => from_double(value as f64, finish),
        _ if finish.saturate => {
            let (low, high) = range(to);
            unsigned(to, value.clamp(low, high) as u64)
        }
        _ => unsigned(to, value as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Finish = Finish { flush: false, saturate: false };
    const SATURATE: Finish = Finish { flush: false, saturate: true };

    fn f(value: f32) -> u64 {
        value.to_bits().into()
    }

    #[test]
    fn conversions() {
        use Rounding::*;
        use Type::*;
        for (to, from, rounding, a, result) in [
            (U64, U32, Plain, 0xffff_ffff, 0xffff_ffff),
            (S64, S32, Plain, 0xffff_ffff, u64::MAX),
            (U8, U32, Plain, 0x1ff, 0xff),
            (S32, S8, Plain, 0x80, 0xffff_ff80),
            (F32, S32, Plain, 0xffff_ffff, f(-1.0)),
            (F32, U32, Plain, 0xffff_ffff, f(4294967296.0)),
            (F32, U64, Plain, (1 << 24) + 1, f(16777216.0)),
            (F64, U64, Plain, 3, 3f64.to_bits()),
            (S32, F32, Zero, f(-1.9), 0xffff_ffff),
            (S32, F32, Nearest, f(2.5), 2),
            (S32, F32, Down, f(-1.1), 0xffff_fffe),
            (S32, F32, Up, f(1.1), 2),
            (S32, F32, Zero, f(1e20), 0x7fff_ffff),
            (U32, F32, Zero, f(-5.0), 0),
            (U8, F32, Zero, f(300.0), 255),
            (S32, F32, Zero, f(f32::NAN), 0),
            (S64, F32, Zero, f(f32::NAN), 1 << 63),
            (U32, F64, Zero, f64::NAN.to_bits(), 1 << 31),
            (F64, F32, Plain, f(1.5), 1.5f64.to_bits()),
            (F32, F64, Plain, 1e300f64.to_bits(), f(f32::INFINITY)),
            (F32, F32, Nearest, f(3.5), f(4.0)),
        ] {
            assert_eq!(
                convert(to, from, rounding, a, PLAIN),
                result,
                "cvt.{rounding:?}.{to:?}.{from:?} {a:#x}"
            );
        }
        assert_eq!(convert(S8, S32, Plain, 300, SATURATE), 127);
        assert_eq!(convert(U8, S32, Plain, 0xffff_ffff, SATURATE), 0);
        assert_eq!(convert(F32, F32, Plain, f(7.0), SATURATE), f(1.0));
    }
}
