//! Runs one thread until it ends or has to wait for others.

use super::{
    alu,
    convert::convert,
    machine::{Block, Cause, State, WARP, dynamic_base},
    memory::LOWEST,
};
use crate::ptx::instruction::{
    Address, Atomic, Binary, Finish, LaneOrder, Operand, Operation, Register, Space, Special, Type,
};

/// Generic addresses of shared memory begin here.
const SHARED_WINDOW: u64 = 1 << 32;
/// Generic addresses of local memory begin here.
const LOCAL_WINDOW: u64 = 2 << 32;
/// Bytes of each window.
const WINDOW: u64 = 1 << 32;

/// A place in one memory.
#[derive(Debug, Clone, Copy)]
struct Place {
    space: Space,
    offset: u64,
}

impl Block<'_, '_> {
    /// Runs until the thread waits or ends. At a wait, its next instruction is the one that waits.
    pub(super) fn run_thread(&mut self, thread: usize) -> Result<State, Cause> {
        let kernel = self.launch.kernel;
        while let Some(instruction) = kernel.code.get(self.next[thread]) {
            self.steps += 1;
            if self.steps > self.launch.step_limit {
                return Err(Cause::StepLimit);
            }
            if let Some((register, negated)) = instruction.guard
                && (self.get(thread, register) & 1 == 1) == negated
            {
                self.next[thread] += 1;
                continue;
            }
            match &instruction.operation {
                Operation::Branch { target } => {
                    self.next[thread] = *target as usize;
                    continue;
                }
                Operation::Barrier { id, threads } => {
                    let id = self.value(thread, *id) as u32;
                    let threads = threads.map(|n| self.value(thread, n) as u32);
                    return Ok(State::Barrier { id, threads });
                }
                Operation::WarpBarrier { .. } | Operation::Shuffle { .. } | Operation::Vote { .. } => {
                    return Ok(State::Warp);
                }
                Operation::Exit => return Ok(State::Done),
                Operation::Trap => return Err(Cause::Trap),
                Operation::Load { .. } | Operation::Store { .. } | Operation::Atomic { .. } => {
                    self.access(thread, &instruction.operation)?;
                }
                operation => self.compute(thread, operation),
            }
            self.next[thread] += 1;
        }
        Ok(State::Done)
    }

    pub(super) fn get(&self, thread: usize, register: Register) -> u64 {
        self.registers[thread * self.launch.kernel.registers as usize + register as usize]
    }

    pub(super) fn set(&mut self, thread: usize, register: Register, value: u64) {
        self.registers[thread * self.launch.kernel.registers as usize + register as usize] = value;
    }

    /// A source's value.
    pub(super) fn value(&self, thread: usize, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register) => self.get(thread, register),
            Operand::Immediate(bits) => bits,
            Operand::Special(special) => self.special(thread, special),
            Operand::Variable(index) => self.launch.variables.get(index as usize).copied().unwrap_or(0),
        }
    }

    fn special(&self, thread: usize, special: Special) -> u64 {
        let lane = thread % WARP;
        let axis = |values: [u32; 3], axis: u8| u64::from(values[axis as usize % 3]);
        match special {
            Special::Tid(a) => axis(self.thread_index(thread), a),
            Special::Ntid(a) => axis(self.launch.block, a),
            Special::Ctaid(a) => axis(self.index, a),
            Special::Nctaid(a) => axis(self.launch.grid, a),
            Special::LaneId => lane as u64,
            Special::WarpId => (thread / WARP) as u64,
            Special::NWarpId => self.states.len().div_ceil(WARP) as u64,
            Special::LaneMask(order) => {
                let own = 1u64 << lane;
                let less = own - 1;
                let all = u64::from(u32::MAX);
                match order {
                    LaneOrder::Eq => own,
                    LaneOrder::Lt => less,
                    LaneOrder::Le => less | own,
                    LaneOrder::Gt => all & !(less | own),
                    LaneOrder::Ge => all & !less,
                }
            }
            Special::Clock => self.steps,
            Special::DynamicSharedSize => self.launch.dynamic_shared.into(),
            Special::DynamicShared => dynamic_base(self.launch.kernel).into(),
        }
    }

    fn compute(&mut self, thread: usize, operation: &Operation) {
        let value = |operand: &Operand| self.value(thread, *operand);
        let (d, result) = match operation {
            Operation::Move { d, a } => (*d, value(a)),
            Operation::Pack { d, parts, bits } => {
                let mask = u64::MAX >> (64 - bits);
                (*d, parts.iter().rev().fold(0, |all, part| all << bits | value(part) & mask))
            }
            Operation::Unpack { parts, a, bits } => {
                let mut rest = value(a);
                for part in parts {
                    if let Some(d) = part {
                        self.set(thread, *d, rest & (u64::MAX >> (64 - bits)));
                    }
                    rest >>= bits;
                }
                return;
            }
            Operation::Unary { op, ty, d, a, finish } => (*d, alu::unary(*op, *ty, value(a), *finish)),
            Operation::Binary { op, ty, d, a, b, finish } => {
                (*d, alu::binary(*op, *ty, value(a), value(b), *finish))
            }
            Operation::Ternary { op, ty, d, a, b, c, finish } => {
                (*d, alu::ternary(*op, *ty, value(a), value(b), value(c), *finish))
            }
            Operation::Compare { compare, ty, flush, d, inverse, a, b, join, with } => {
                let held = alu::compare(*compare, *ty, value(a), value(b), *flush);
                let with = (value(&with.0) & 1 == 1) != with.1;
                let (p, q) = (alu::join(*join, held, with), alu::join(*join, !held, with));
                for (register, result) in [(d, p), (inverse, q)] {
                    if let Some(register) = register {
                        self.set(thread, *register, result.into());
                    }
                }
                return;
            }
            Operation::Select { d, a, b, p } => (*d, if value(p) & 1 == 1 { value(a) } else { value(b) }),
            Operation::Convert { to, from, rounding, finish, d, a } => {
                let converted = convert(*to, *from, *rounding, value(a), *finish);
                // The destination may be wider than the type: a signed value keeps its sign there.
                (*d, if to.is_signed() { alu::signed(*to, converted) as u64 } else { converted })
            }
            Operation::ConvertAddress { d, a, space, to_generic } => {
                let window = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    _ => 0,
                };
                let a = value(a);
                (*d, if *to_generic { a.wrapping_add(window) } else { a.wrapping_sub(window) })
            }
            _ => return,
        };
        self.set(thread, d, result);
    }

    fn place(&self, thread: usize, address: &Address, bytes: u64) -> Result<Place, Cause> {
        let base = self.value(thread, address.base);
        let global = base.wrapping_add_signed(address.offset);
        let (space, offset) = match address.space {
            Space::Global => (Space::Global, global),
            Space::Generic if global >= LOWEST => (Space::Global, global),
            Space::Generic if (SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(&global) => {
                (Space::Shared, global - SHARED_WINDOW)
            }
            Space::Generic if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW).contains(&global) => {
                (Space::Local, global - LOCAL_WINDOW)
            }
            Space::Generic => (Space::Global, global),
            // These addresses have 32 bits, whatever is above them in the register.
            space => (space, (base & 0xffff_ffff).wrapping_add_signed(address.offset)),
        };
        if !offset.is_multiple_of(bytes) {
            return Err(Cause::Misaligned { address: offset, bytes });
        }
        Ok(Place { space, offset })
    }

    fn bytes(&mut self, thread: usize, place: Place, bytes: u64) -> Result<&mut [u8], Cause> {
        let local = self.launch.kernel.local_bytes as usize;
        let (memory, space): (&mut [u8], _) = match place.space {
            Space::Shared => (&mut self.shared, "shared"),
            Space::Local => (&mut self.local[thread * local..(thread + 1) * local], "local"),
            _ => return Ok(self.memory.bytes_mut(place.offset, bytes)?),
        };
        let size = memory.len() as u64;
        window(memory, place.offset, bytes).ok_or(Cause::Window { space, offset: place.offset, bytes, size })
    }

    fn access(&mut self, thread: usize, operation: &Operation) -> Result<(), Cause> {
        match operation {
            Operation::Load { ty, d, from } => {
                let step = u64::from(ty.bytes());
                let bytes = step * d.len() as u64;
                let place = self.place(thread, from, bytes)?;
                let mut raw = [0; 32];
                let source = if place.space == Space::Parameter {
                    let all = self.launch.parameters;
                    let (offset, size) = (place.offset, all.len() as u64);
                    let end = offset.checked_add(bytes).filter(|end| *end <= size);
                    let fault = Cause::Window { space: "parameter", offset, bytes, size };
                    &all[offset as usize..end.ok_or(fault)? as usize]
                } else {
                    &*self.bytes(thread, place, bytes)?
                };
                raw[..source.len()].copy_from_slice(source);
                for (part, register) in raw.chunks(step as usize).zip(d) {
                    let value = little_endian(part);
                    if let Some(register) = register {
                        let value = if ty.is_signed() { alu::signed(*ty, value) as u64 } else { value };
                        self.set(thread, *register, value);
                    }
                }
            }
            Operation::Store { ty, a, to } => {
                let step = ty.bytes() as usize;
                let bytes = (step * a.len()) as u64;
                let place = self.place(thread, to, bytes)?;
                let mut raw = [0; 32];
                for (part, operand) in raw.chunks_mut(step).zip(a) {
                    part.copy_from_slice(&self.value(thread, *operand).to_le_bytes()[..step]);
                }
                self.bytes(thread, place, bytes)?.copy_from_slice(&raw[..bytes as usize]);
            }
            Operation::Atomic { op, ty, d, at, b, c } => {
                let (b, c) = (self.value(thread, *b), self.value(thread, *c));
                let bytes = u64::from(ty.bytes());
                let place = self.place(thread, at, bytes)?;
                let cell = self.bytes(thread, place, bytes)?;
                let old = little_endian(cell);
                let new = atomic(*op, *ty, old, b, c);
                cell.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
                if let Some(d) = d {
                    self.set(thread, *d, old);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn window(memory: &mut [u8], offset: u64, bytes: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    memory.get_mut(start..start.checked_add(bytes as usize)?)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The new value of a cell.
fn atomic(op: Atomic, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let same = |x, y| alu::unsigned(ty, x) == alu::unsigned(ty, y);
    let arithmetic = match op {
        Atomic::Add => Binary::Add,
        Atomic::Min => Binary::Min,
        Atomic::Max => Binary::Max,
        Atomic::And => Binary::And,
        Atomic::Or => Binary::Or,
        Atomic::Xor => Binary::Xor,
        Atomic::Exch => return b,
        Atomic::Cas => return if same(old, b) { c } else { old },
        Atomic::Inc => {
            return if alu::unsigned(ty, old) >= alu::unsigned(ty, b) { 0 } else { old + 1 };
        }
        Atomic::Dec => {
            let (value, bound) = (alu::unsigned(ty, old), alu::unsigned(ty, b));
            return if value == 0 || value > bound { bound } else { value - 1 };
        }
    };
    alu::binary(arithmetic, ty, old, b, Finish::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomics() {
        use Atomic::*;
        let f = |v: f32| u64::from(v.to_bits());
        for (op, ty, old, b, c, new) in [
            (Add, Type::U32, u32::MAX.into(), 2, 0, 1),
            (Add, Type::F32, f(1.0), f(0.5), 0, f(1.5)),
            (Min, Type::S32, 1, 0xffff_ffff, 0, 0xffff_ffff),
            (Max, Type::U32, 1, 0xffff_ffff, 0, 0xffff_ffff),
            (And, Type::B32, 0b1100, 0b1010, 0, 0b1000),
            (Or, Type::B32, 0b1100, 0b1010, 0, 0b1110),
            (Xor, Type::B64, 0b1100, 0b1010, 0, 0b0110),
            (Exch, Type::B32, 1, 2, 0, 2),
            (Cas, Type::B32, 1, 1, 9, 9),
            (Cas, Type::B32, 1, 2, 9, 1),
            (Inc, Type::U32, 3, 3, 0, 0),
            (Inc, Type::U32, 2, 3, 0, 3),
            (Dec, Type::U32, 0, 7, 0, 7),
            (Dec, Type::U32, 5, 7, 0, 4),
        ] {
            assert_eq!(atomic(op, ty, old, b, c), new, "{op:?}.{ty:?} {old:#x} {b:#x} {c:#x}");
        }
    }
}
