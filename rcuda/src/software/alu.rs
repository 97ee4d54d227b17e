//! Arithmetic: values in, value out. A value is the bits of its type in the low end of a `u64`; what lies above
//! is not looked at, and results are cut to their type.

use std::cmp::Ordering;

use crate::ptx::instruction::{Binary, Compare, Finish, Join, Ternary, Type, Unary};

fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The value, zero-extended.
pub fn unsigned(ty: Type, value: u64) -> u64 {
    value & mask(ty.bits())
}

/// The value, sign-extended.
pub fn signed(ty: Type, value: u64) -> i64 {
    let shift = 64 - ty.bits().min(64);
    ((value << shift) as i64) >> shift
}

/// An integer as a number.
pub(super) fn number(ty: Type, value: u64) -> i128 {
    if ty.is_signed() { signed(ty, value).into() } else { unsigned(ty, value).into() }
}

pub(super) fn range(ty: Type) -> (i128, i128) {
    if ty.is_signed() {
        (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1)
    } else {
        (0, (1 << ty.bits()) - 1)
    }
}

pub(super) fn single(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

pub(super) fn double(value: u64) -> f64 {
    f64::from_bits(value)
}

pub(super) fn flushed(value: f32, finish: Finish) -> f32 {
    if finish.flush && value.is_subnormal() { 0f32.copysign(value) } else { value }
}

pub(super) fn from_single(value: f32, finish: Finish) -> u64 {
    let mut value = flushed(value, finish);
    if finish.saturate {
        // NaN becomes 0.
        value = if value > 0.0 { value.min(1.0) } else { 0.0 };
    }
    // PTX has one NaN for results in single precision.
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

pub(super) fn from_double(value: f64, finish: Finish) -> u64 {
    let value = match (finish.saturate, value > 0.0) {
        (false, _) => value,
        (true, true) => value.min(1.0),
        (true, false) => 0.0,
    };
    value.to_bits()
}

/// The smaller or larger float; the other one if one is NaN; -0 counts as less than +0.
macro_rules! extreme {
    ($a:expr, $b:expr, $larger:expr) => {{
        let (a, b) = ($a, $b);
        if a.is_nan() {
            b
        } else if b.is_nan() {
            a
        } else if (a.total_cmp(&b) == Ordering::Greater) == $larger {
            a
        } else {
            b
        }
    }};
}

/// Two-operand arithmetic and logic.
pub fn binary(op: Binary, ty: Type, a: u64, b: u64, finish: Finish) -> u64 {
    match ty {
        Type::F32 => {
            let (a, b) = (flushed(single(a), finish), flushed(single(b), finish));
            let value = match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Min => extreme!(a, b, false),
                Binary::Max => extreme!(a, b, true),
                _ => f32::NAN,
            };
            from_single(value, finish)
        }
        Type::F64 => {
            let (a, b) = (double(a), double(b));
            let value = match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Min => extreme!(a, b, false),
                Binary::Max => extreme!(a, b, true),
                _ => f64::NAN,
            };
            from_double(value, finish)
        }
        _ => integer(op, ty, a, b, finish),
    }
}

fn integer(op: Binary, ty: Type, a: u64, b: u64, finish: Finish) -> u64 {
    let bits = ty.bits();
    let amount = b as u32;
    let value = match op {
        Binary::Add | Binary::Sub if finish.saturate => {
            let (low, high) = range(ty);
            let (a, b) = (number(ty, a), number(ty, b));
            (if op == Binary::Add { a + b } else { a - b }).clamp(low, high) as u64
        }
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::MulHi => (number(ty, a).wrapping_mul(number(ty, b)) >> bits) as u64,
        // Both operands have 32 bits at most: the product fits.
        Binary::MulWide => return unsigned_product(ty, a, b),
        // PTX leaves division by zero open; devices answer with all ones, and the dividend as the rest.
        Binary::Div if unsigned(ty, b) == 0 => u64::MAX,
        Binary::Rem if unsigned(ty, b) == 0 => a,
        Binary::Div => (number(ty, a) / number(ty, b)) as u64,
        Binary::Rem => (number(ty, a) % number(ty, b)) as u64,
        Binary::Min => number(ty, a).min(number(ty, b)) as u64,
        Binary::Max => number(ty, a).max(number(ty, b)) as u64,
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl => {
            if amount >= bits {
                0
            } else {
                a << amount
            }
        }
        Binary::Shr if ty.is_signed() => (signed(ty, a) >> amount.min(bits - 1)) as u64,
        Binary::Shr => {
            if amount >= bits {
                0
            } else {
                unsigned(ty, a) >> amount
            }
        }
    };
    unsigned(ty, value)
}

fn unsigned_product(ty: Type, a: u64, b: u64) -> u64 {
    let product = (number(ty, a) * number(ty, b)) as u64;
    product & mask(ty.bits() * 2)
}

/// Three-operand arithmetic.
pub fn ternary(op: Ternary, ty: Type, a: u64, b: u64, c: u64, finish: Finish) -> u64 {
    match op {
        Ternary::Fma if ty == Type::F32 => {
            let [a, b, c] = [a, b, c].map(|v| flushed(single(v), finish));
            from_single(a.mul_add(b, c), finish)
        }
        Ternary::Fma => from_double(double(a).mul_add(double(b), double(c)), finish),
        Ternary::MadLo => unsigned(ty, a.wrapping_mul(b).wrapping_add(c)),
        Ternary::MadHi => unsigned(ty, integer(Binary::MulHi, ty, a, b, finish).wrapping_add(c)),
        Ternary::MadWide => unsigned_product(ty, a, b).wrapping_add(c) & mask(ty.bits() * 2),
        Ternary::Bfe => extract(ty, unsigned(ty, a), (b & 0xff) as u32, (c & 0xff) as u32),
    }
}

/// `length` bits from `start` on; the sign bit is the field's top bit, or the operand's where the field ends
/// beyond it.
fn extract(ty: Type, a: u64, start: u32, length: u32) -> u64 {
    let top = ty.bits() - 1;
    let sign = ty.is_signed() && length > 0 && {
        let at = (start + length - 1).min(top);
        a >> at & 1 == 1
    };
    let field = if start > top { 0 } else { a >> start } & mask(length);
    let have = length.min(ty.bits().saturating_sub(start));
    unsigned(ty, if sign { field | !mask(have) } else { field })
}

/// One-operand arithmetic and logic.
pub fn unary(op: Unary, ty: Type, a: u64, finish: Finish) -> u64 {
    match ty {
        Type::F32 => {
            let a = flushed(single(a), finish);
            let value = match op {
                Unary::Neg => return flushed_bits(-a, finish),
                Unary::Abs => return flushed_bits(a.abs(), finish),
                Unary::Sqrt => a.sqrt(),
                // In double precision first: one rounding more than exact, far less than the ISA allows.
                Unary::Rsqrt => (1.0 / f64::from(a).sqrt()) as f32,
                Unary::Rcp => 1.0 / a,
                Unary::Sin => f64::from(a).sin() as f32,
                Unary::Cos => f64::from(a).cos() as f32,
                Unary::Ex2 => f64::from(a).exp2() as f32,
                Unary::Lg2 => f64::from(a).log2() as f32,
                _ => f32::NAN,
            };
            from_single(value, finish)
        }
        Type::F64 => {
            let a = double(a);
            let value = match op {
                Unary::Neg => -a,
                Unary::Abs => a.abs(),
                Unary::Sqrt => a.sqrt(),
                Unary::Rsqrt => 1.0 / a.sqrt(),
                Unary::Rcp => 1.0 / a,
                _ => f64::NAN,
            };
            value.to_bits()
        }
        _ => {
            let value = unsigned(ty, a);
            let result = match op {
                Unary::Not => !value,
                Unary::CNot => u64::from(value == 0),
                Unary::Neg => value.wrapping_neg(),
                Unary::Abs => signed(ty, a).unsigned_abs(),
                Unary::Popc => value.count_ones().into(),
                Unary::Clz => (value.leading_zeros() - (64 - ty.bits())).into(),
                Unary::Brev => value.reverse_bits() >> (64 - ty.bits()),
                _ => 0,
            };
            unsigned(ty, result)
        }
    }
}

fn flushed_bits(value: f32, finish: Finish) -> u64 {
    u64::from(flushed(value, finish).to_bits())
}

/// A comparison.
pub fn compare(compare: Compare, ty: Type, a: u64, b: u64, flush: bool) -> bool {
    let finish = Finish { flush, saturate: false };
    let ordering = match ty {
        Type::F32 => flushed(single(a), finish).partial_cmp(&flushed(single(b), finish)),
        Type::F64 => double(a).partial_cmp(&double(b)),
        _ => Some(number(ty, a).cmp(&number(ty, b))),
    };
    let Some(ordering) = ordering else {
        return matches!(
            compare,
            Compare::Equ
                | Compare::Neu
                | Compare::Ltu
                | Compare::Leu
                | Compare::Gtu
                | Compare::Geu
                | Compare::Nan
        );
    };
    match compare {
        Compare::Eq | Compare::Equ => ordering.is_eq(),
        Compare::Ne | Compare::Neu => ordering.is_ne(),
        Compare::Lt | Compare::Ltu => ordering.is_lt(),
        Compare::Le | Compare::Leu => ordering.is_le(),
        Compare::Gt | Compare::Gtu => ordering.is_gt(),
        Compare::Ge | Compare::Geu => ordering.is_ge(),
        Compare::Num => true,
        Compare::Nan => false,
    }
}

/// Joins a comparison with another predicate.
pub fn join(join: Join, value: bool, with: bool) -> bool {
    match join {
        Join::None => value,
        Join::And => value && with,
        Join::Or => value || with,
        Join::Xor => value != with,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Finish = Finish { flush: false, saturate: false };
    const SATURATE: Finish = Finish { flush: false, saturate: true };
    const FLUSH: Finish = Finish { flush: true, saturate: false };

    fn f(value: f32) -> u64 {
        value.to_bits().into()
    }

    #[test]
    fn two_operands() {
        use Binary::*;
        use Type::*;
        let minus = |v: i64| v as u64;
        for (op, ty, a, b, result) in [
            (Add, U32, 0xffff_ffff, 2, 1),
            (Add, S64, minus(-5), 3, minus(-2)),
            (Add, U16, 0xffff, 1, 0),
            (Add, F32, f(1.5), f(2.25), f(3.75)),
            (Add, F64, 1.5f64.to_bits(), 2.0f64.to_bits(), 3.5f64.to_bits()),
            (Sub, U32, 1, 2, 0xffff_ffff),
            (Sub, F32, f(1.0), f(2.0), f(-1.0)),
            (Mul, S32, minus(-3), 7, minus(-21) & 0xffff_ffff),
            (Mul, F32, f(3.0), f(-0.5), f(-1.5)),
            (MulHi, U32, 0xffff_ffff, 0xffff_ffff, 0xffff_fffe),
            (MulHi, S32, minus(-1), 1, 0xffff_ffff),
            (MulHi, U64, u64::MAX, u64::MAX, u64::MAX - 1),
            (MulHi, S64, minus(-1), minus(-1), 0),
            (MulWide, S32, minus(-2), 3, minus(-6)),
            (MulWide, U32, 0xffff_ffff, 4, 0x3_ffff_fffc),
            (MulWide, S16, 0x8000, 2, 0xffff_0000),
            (Div, S32, minus(-7), 2, minus(-3) & 0xffff_ffff),
            (Div, U32, 7, 0, 0xffff_ffff),
            (Div, S32, 0x8000_0000, minus(-1), 0x8000_0000),
            (Div, S64, 1 << 63, minus(-1), 1 << 63),
            (Div, F32, f(1.0), f(0.0), f(f32::INFINITY)),
            (Rem, S32, minus(-7), 2, 0xffff_ffff),
            (Rem, U32, 7, 0, 7),
            (Min, S32, minus(-1), 1, 0xffff_ffff),
            (Min, U32, 0xffff_ffff, 1, 1),
            (Min, F32, f(f32::NAN), f(1.0), f(1.0)),
            (Min, F32, f(0.0), f(-0.0), f(-0.0)),
            (Max, F32, f(-0.0), f(0.0), f(0.0)),
            (Max, F64, 1.0f64.to_bits(), 2.0f64.to_bits(), 2.0f64.to_bits()),
            (Max, S32, minus(-1), 1, 1),
            (And, B32, 0xff00, 0x0ff0, 0x0f00),
            (Or, Pred, 0, 1, 1),
            (Xor, B64, u64::MAX, 1, u64::MAX - 1),
            (Shl, B32, 1, 31, 1 << 31),
            (Shl, B32, 1, 32, 0),
            (Shl, B64, 1, 63, 1 << 63),
            (Shr, U32, 0x8000_0000, 31, 1),
            (Shr, U32, 0x8000_0000, 32, 0),
            (Shr, S32, 0x8000_0000, 40, 0xffff_ffff),
            (Shr, S64, minus(-8), 1, minus(-4)),
        ] {
            assert_eq!(binary(op, ty, a, b, PLAIN), result, "{op:?}.{ty:?} {a:#x} {b:#x}");
        }
        assert_eq!(binary(Add, S32, 0x7fff_ffff, 1, SATURATE), 0x7fff_ffff);
        assert_eq!(binary(Sub, S32, 0x8000_0000, 1, SATURATE), 0x8000_0000);
        assert_eq!(binary(Add, F32, f(0.75), f(0.75), SATURATE), f(1.0));
        assert_eq!(binary(Add, F32, f(1e-40), f(0.0), FLUSH), 0);
        assert_eq!(binary(Add, F32, f(1e-40), f(0.0), PLAIN), f(1e-40));
    }

    #[test]
    fn three_operands() {
        use Ternary::*;
        use Type::*;
        for (op, ty, a, b, c, result) in [
            (MadLo, U32, 0x1_0000, 0x1_0000, 5, 5),
            (MadLo, S32, 3, 4, 5, 17),
            (MadHi, U32, 0xffff_ffff, 2, 5, 6),
            (MadWide, U32, 0xffff_ffff, 2, 1, 0x1_ffff_ffff),
            (MadWide, S32, u64::MAX, 8, 16, 8),
            (Fma, F32, f(2.0), f(3.0), f(1.0), f(7.0)),
            // One rounding only: the product's low bits survive.
            (
                Fma,
                F32,
                f(1.0 + f32::EPSILON),
                f(1.0 - f32::EPSILON),
                f(-1.0),
                f(-f32::EPSILON * f32::EPSILON),
            ),
            (Fma, F64, 2f64.to_bits(), 3f64.to_bits(), 1f64.to_bits(), 7f64.to_bits()),
            (Bfe, U32, 0xabcd_1234, 8, 8, 0x12),
            (Bfe, S32, 0x0000_8000, 8, 8, 0xffff_ff80),
            (Bfe, S32, 0x8000_0000, 28, 20, 0xffff_fff8),
            (Bfe, U32, 0xffff_ffff, 32, 8, 0),
            (Bfe, U32, 0xffff_ffff, 0, 0, 0),
            (Bfe, U64, u64::MAX, 60, 8, 0xf),
        ] {
            assert_eq!(ternary(op, ty, a, b, c, PLAIN), result, "{op:?}.{ty:?} {a:#x} {b:#x} {c:#x}");
        }
    }

    #[test]
    fn one_operand() {
        use Type::*;
        use Unary::*;
        for (op, ty, a, result) in [
            (Not, B32, 0, 0xffff_ffff),
            (Not, Pred, 1, 0),
            (CNot, B32, 0, 1),
            (CNot, B32, 5, 0),
            (Neg, S32, 1, 0xffff_ffff),
            (Neg, F32, f(1.5), f(-1.5)),
            (Abs, S32, 0xffff_fffe, 2),
            (Abs, F64, (-2f64).to_bits(), 2f64.to_bits()),
            (Popc, B32, 0xff_0000_00f1, 5),
            (Popc, B64, u64::MAX, 64),
            (Clz, B32, 1, 31),
            (Clz, B64, 0, 64),
            (Brev, B32, 1, 0x8000_0000),
            (Sqrt, F32, f(9.0), f(3.0)),
            (Sqrt, F64, 9f64.to_bits(), 3f64.to_bits()),
            (Rsqrt, F32, f(4.0), f(0.5)),
            (Rcp, F32, f(4.0), f(0.25)),
            (Sin, F32, f(0.0), f(0.0)),
            (Cos, F32, f(0.0), f(1.0)),
            (Ex2, F32, f(3.0), f(8.0)),
            (Lg2, F32, f(8.0), f(3.0)),
            (Sqrt, F32, f(-1.0), 0x7fff_ffff),
        ] {
            assert_eq!(unary(op, ty, a, PLAIN), result, "{op:?}.{ty:?} {a:#x}");
        }
    }

    #[test]
    fn comparisons() {
        use Compare::*;
        use Type::*;
        let nan = f(f32::NAN);
        for (op, ty, a, b, result) in [
            (Eq, S32, 0x1_0000_0001, 1, true),
            (Ne, U32, 1, 2, true),
            (Lt, S32, 0xffff_ffff, 0, true),
            (Lt, U32, 0xffff_ffff, 0, false),
            (Le, U64, 3, 3, true),
            (Gt, S64, 1, u64::MAX, true),
            (Ge, U16, 0x1_0000, 1, false),
            (Lt, F32, f(-1.0), f(1.0), true),
            (Eq, F32, f(0.0), f(-0.0), true),
            (Eq, F32, nan, nan, false),
            (Ne, F32, nan, f(1.0), false),
            (Equ, F32, nan, f(1.0), true),
            (Neu, F32, f(1.0), f(1.0), false),
            (Ltu, F32, nan, f(1.0), true),
            (Leu, F32, f(2.0), f(1.0), false),
            (Gtu, F32, f(2.0), f(1.0), true),
            (Geu, F32, f(0.5), f(1.0), false),
            (Num, F32, f(1.0), nan, false),
            (Nan, F32, f(1.0), nan, true),
            (Gt, F64, 2f64.to_bits(), 1f64.to_bits(), true),
        ] {
            assert_eq!(compare(op, ty, a, b, false), result, "{op:?}.{ty:?} {a:#x} {b:#x}");
        }
        assert!(compare(Eq, F32, f(1e-40), f(0.0), true));
        assert_eq!(
            [Join::None, Join::And, Join::Or, Join::Xor].map(|j| join(j, true, false)),
            [true, false, true, true]
        );
    }
}
