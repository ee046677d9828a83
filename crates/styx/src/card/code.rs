//! The few instructions of the kernel's virtual machine that a [`super::program`] needs, with jumps by label. Pure.
//!
//! As `linux/bpf.h` and `linux/bpf_common.h` number them.

/// One instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    /// The source in the upper half, the destination in the lower one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register: 0 has results, 1 to 5 arguments, which calls destroy, and 6 to 9 stay.
pub(super) type Register = u8;

/// How wide a load is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Width {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// What a jump asks, of unsigned numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum If {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    AtMost = 0xb0,
}

/// Arithmetic, of 64 bits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Do {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    ShiftRight = 0x70,
    Set = 0xb0,
}

const LOAD: u8 = 0x01 | 0x60;
const STORE: u8 = 0x03 | 0x60;
const ATOMIC: u8 = 0x03 | 0xc0;
const WIDE: u8 = 0x18;
const JUMP: u8 = 0x05;
const JUMP_WORD: u8 = 0x06;
const ALU: u8 = 0x07;
const REGISTER: u8 = 0x08;
const CALL: u8 = JUMP | 0x80;
const EXIT: u8 = JUMP | 0x90;
/// `BPF_ADD`, `BPF_ADD | BPF_FETCH` and `BPF_CMPXCHG`, as atomic operations.
const ATOMIC_ADD: i32 = 0;
const FETCH_AND_ADD: i32 = 1;
const COMPARE_AND_EXCHANGE: i32 = 0xf1;
/// `BPF_PSEUDO_MAP_VALUE`: the number is a descriptor of a map, and its first value's address is meant.
const MAP_VALUE: u8 = 2;

/// Instructions with jumps to labels `L`, all of them forwards.
#[derive(Debug)]
pub(super) struct Code<L> {
    done: Vec<Instruction>,
    jumps: Vec<(usize, L)>,
}

impl<L: PartialEq> Code<L> {
    pub(super) fn new() -> Self {
        Self { done: Vec::new(), jumps: Vec::new() }
    }

    fn put(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.done.push(Instruction { code, registers: from << 4 | to, offset, immediate });
    }

    /// `to` becomes what is at `from` and this many bytes.
    pub(super) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.put(LOAD | width as u8, to, from, offset, 0);
    }

    /// What is at `to` and this many bytes becomes `from`.
    pub(super) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.put(STORE | width as u8, to, from, offset, 0);
    }

    /// `to` becomes a number.
    pub(super) fn number(&mut self, to: Register, number: u64) {
        self.wide(to, 0, number);
    }

    /// `to` becomes the address of the first value of a map.
    pub(super) fn map_value(&mut self, to: Register, map: i32) {
        self.wide(to, MAP_VALUE, u64::from(map.cast_unsigned()));
    }

    fn wide(&mut self, to: Register, kind: u8, number: u64) {
        self.put(WIDE, to, kind, 0, (number as u32).cast_signed());
        self.put(0, 0, 0, 0, ((number >> 32) as u32).cast_signed());
    }

    pub(super) fn by(&mut self, what: Do, to: Register, number: i32) {
        self.put(ALU | what as u8, to, 0, 0, number);
    }

    pub(super) fn with(&mut self, what: Do, to: Register, from: Register) {
        self.put(ALU | REGISTER | what as u8, to, from, 0, 0);
    }

    /// Adds `from` to the 8 bytes at `to` and this many bytes, in one step.
    pub(super) fn add_to(&mut self, to: Register, offset: i16, from: Register) {
        self.put(ATOMIC | Width::Double as u8, to, from, offset, ATOMIC_ADD);
    }

    /// The same, and `from` becomes what was there before.
    pub(super) fn fetch_and_add(&mut self, to: Register, offset: i16, from: Register) {
        self.put(ATOMIC | Width::Double as u8, to, from, offset, FETCH_AND_ADD);
    }

    /// The 8 bytes at `to` and this many bytes become `from` if they are register 0, which becomes what they were.
    pub(super) fn exchange(&mut self, to: Register, offset: i16, from: Register) {
        self.put(ATOMIC | Width::Double as u8, to, from, offset, COMPARE_AND_EXCHANGE);
    }

    /// A helper of the kernel's, by its number.
    pub(super) fn call(&mut self, helper: i32) {
        self.put(CALL, 0, 0, 0, helper);
    }

    /// Ends with register 0.
    pub(super) fn exit(&mut self) {
        self.put(EXIT, 0, 0, 0, 0);
    }

    pub(super) fn jump(&mut self, label: L) {
        self.jumps.push((self.done.len(), label));
        self.put(JUMP, 0, 0, 0, 0);
    }

    /// Of the lower 32 bits.
    pub(super) fn jump_if(&mut self, left: Register, what: If, right: u32, label: L) {
        self.jumps.push((self.done.len(), label));
        self.put(JUMP_WORD | what as u8, left, 0, 0, right.cast_signed());
    }

    /// Of all 64 bits.
    pub(super) fn jump_with(&mut self, left: Register, what: If, right: Register, label: L) {
        self.jumps.push((self.done.len(), label));
        self.put(JUMP | REGISTER | what as u8, left, right, 0, 0);
    }

    /// Here is where jumps to `label` so far lead.
    pub(super) fn place(&mut self, label: &L) {
        let here = self.done.len();
        for (at, _) in self.jumps.extract_if(.., |(_, to)| to == label) {
            self.done[at].offset = i16::try_from(here - at - 1).unwrap_or(i16::MAX);
        }
    }

    /// Whether a jump leads to `label`; a kernel refuses what none leads to.
    pub(super) fn wants(&self, label: &L) -> bool {
        self.jumps.iter().any(|(_, to)| to == label)
    }

    /// All of them; every label that is jumped to has its place.
    pub(super) fn end(self) -> Vec<Instruction> {
        debug_assert!(self.jumps.is_empty(), "a jump leads nowhere");
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut code = Code::new();
        code.jump_if(1, If::Equal, u32::MAX, 'a');
        code.jump('b');
        code.place(&'a');
        code.exit();
        code.place(&'b');
        code.number(3, 0x1_0000_0002);
        let done = code.end();
        assert_eq!(done[0], Instruction { code: 0x16, registers: 1, offset: 1, immediate: -1 });
        assert_eq!((done[1].code, done[1].offset), (0x05, 1));
        assert_eq!((done[3].immediate, done[4].immediate, done.len()), (2, 1, 5));
    }
}
