//! Device rules as a BPF program of type CGROUP_DEVICE, attached to the container's group.
//! config-linux.md, "Allowed Device list"; the rules are folded as runc folds them, so partial rules add up.

use crate::error::{Error, Result};
use crate::spec::{LinuxDeviceCgroup, LinuxDeviceType};

/// struct bpf_insn.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// linux/bpf.h
const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// What a rule is about; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
}

/// Rules folded: a default, and the devices for which the opposite holds, with the accesses concerned.
#[derive(Debug, Default, PartialEq, Eq)]
struct Folded {
    allow: bool,
    exceptions: Vec<(Device, u8)>,
}

/// What every container may use, whatever the rules say: (type, major, minor, access).
const ALWAYS: [(i32, Option<i32>, Option<i32>, u8); 11] = [
    (DEV_CHAR, None, None, MKNOD),
    (DEV_BLOCK, None, None, MKNOD),
    (DEV_CHAR, Some(1), Some(3), ALL),
    (DEV_CHAR, Some(1), Some(5), ALL),
    (DEV_CHAR, Some(1), Some(7), ALL),
    (DEV_CHAR, Some(1), Some(8), ALL),
    (DEV_CHAR, Some(1), Some(9), ALL),
    (DEV_CHAR, Some(5), Some(0), ALL),
    (DEV_CHAR, Some(5), Some(1), ALL),
    (DEV_CHAR, Some(5), Some(2), ALL),
    (DEV_CHAR, Some(136), None, ALL),
];

/// The program for `rules` and the default devices; `None` where everything is allowed.
pub(crate) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<Instruction>>> {
    let mut folded = Folded::default();
    for rule in rules {
        let (device, access) = parse(rule)?;
        folded.add(rule.allow(), device, access);
    }
    for (kind, major, minor, access) in ALWAYS {
        let device = Device {
            kind: Some(kind),
            major,
            minor,
        };
        folded.add(true, device, access);
    }
    let unrestricted = folded.allow && folded.exceptions.is_empty();
    Ok((!unrestricted).then(|| folded.compile()))
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<(Device, u8)> {
    let wrong = |what: String| Error::invalid(format!("linux.resources.devices: {what} in rule \"{rule}\""));
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(DEV_BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DEV_CHAR),
        Some(LinuxDeviceType::P) => return Err(wrong("type \"p\"".into())),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => i32::try_from(value)
            .map(Some)
            .map_err(|_| wrong(format!("number {value}"))),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(wrong(format!("access {other:?}"))),
        };
    }
    let device = Device {
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
    };
    // A rule for all devices without access is one for all accesses, as engines write it.
    let everything = device
        == (Device {
            kind: None,
            major: None,
            minor: None,
        });
    Ok((device, if access == 0 && everything { ALL } else { access }))
}

impl Folded {
    fn add(&mut self, allow: bool, device: Device, access: u8) {
        if device.kind.is_none() && device.major.is_none() && device.minor.is_none() && access == ALL {
            self.allow = allow;
            self.exceptions.clear();
            return;
        }
        let kinds = match device.kind {
            Some(kind) => vec![kind],
            None => vec![DEV_BLOCK, DEV_CHAR],
        };
        for kind in kinds {
            let kind = Some(kind);
            self.add_one(allow, Device { kind, ..device }, access);
        }
    }

    fn add_one(&mut self, allow: bool, device: Device, access: u8) {
        let place = self.exceptions.iter().position(|(other, _)| *other == device);
        match (allow == self.allow, place) {
            (true, Some(place)) => {
                self.exceptions[place].1 &= !access;
                if self.exceptions[place].1 == 0 {
                    self.exceptions.remove(place);
                }
            }
            (true, None) => (),
            (false, Some(place)) => self.exceptions[place].1 |= access,
            (false, None) => self.exceptions.push((device, access)),
        }
    }

    /// Straight-line code: a branch would make the verifier explore both ways, rule by rule, and that costs more than
    /// the rest of a container's cgroup. Registers: r3 access, r4 major, r5 minor, all below 2^32; r8 and r9 are zero for
    /// block and character devices; r7 becomes 1 when an exception hits; r1 collects what differs from one exception, r6
    /// is scratch.
    fn compile(&self) -> Vec<Instruction> {
        let mut code = vec![
            load(8, 0),
            with_immediate(AND, 8, 0xffff),
            between(MOVE_REGISTER, 9, 8),
            with_immediate(XOR_WORD, 8, DEV_BLOCK),
            with_immediate(XOR_WORD, 9, DEV_CHAR),
            load(3, 0),
            with_immediate(SHIFT_RIGHT, 3, 16),
            load(4, 4),
            load(5, 8),
            with_immediate(MOVE, 7, 0),
        ];
        for (device, access) in &self.exceptions {
            code.push(match device.kind {
                Some(DEV_BLOCK) => between(MOVE_REGISTER, 1, 8),
                Some(_) => between(MOVE_REGISTER, 1, 9),
                None => with_immediate(MOVE, 1, 0),
            });
            for (register, value) in [(4, device.major), (5, device.minor)] {
                let Some(value) = value else { continue };
                code.extend([
                    between(MOVE_WORD, 6, register),
                    with_immediate(XOR_WORD, 6, value),
                    between(OR, 1, 6),
                ]);
            }
            if *access != ALL {
                code.extend(self.access_differs(*access));
            }
            // Zero minus one is the only difference with the highest bit set.
            code.extend([
                with_immediate(ADD, 1, -1),
                with_immediate(SHIFT_RIGHT, 1, 63),
                between(OR, 7, 1),
            ]);
        }
        code.push(between(MOVE_REGISTER, 0, 7));
        code.push(with_immediate(XOR_WORD, 0, self.allow.into()));
        // It is 0 or 1 already, but verifiers before Linux 6.10 know no bounds of what OR gives.
        code.push(with_immediate(AND, 0, 1));
        code.push(with_immediate(EXIT, 0, 0));
        code
    }

    /// Adds to r1 whether what is asked for misses an exception for `access`.
    fn access_differs(&self, access: u8) -> Vec<Instruction> {
        let mut code = vec![between(MOVE_REGISTER, 6, 3)];
        match self.allow {
            // Allowed exceptions must cover all of it: what they lack differs.
            false => code.push(with_immediate(AND, 6, (ALL & !access).into())),
            // Denied ones hit when they touch any of it: touching nothing differs.
            true => code.extend([
                with_immediate(AND, 6, access.into()),
                with_immediate(ADD, 6, -1),
                with_immediate(SHIFT_RIGHT, 6, 63),
            ]),
        }
        code.push(between(OR, 1, 6));
        code
    }
}

// Operations, linux/bpf.h and bpf_common.h: class ALU64 (7) or ALU (4), source immediate (0) or register (8).
const ADD: u8 = 0x07;
const OR: u8 = 0x4f;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const XOR_WORD: u8 = 0xa4;
const MOVE: u8 = 0xb7;
const MOVE_WORD: u8 = 0xbc;
const MOVE_REGISTER: u8 = 0xbf;
const LOAD_WORD: u8 = 0x61;
const EXIT: u8 = 0x95;

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

fn with_immediate(code: u8, register: u8, immediate: i32) -> Instruction {
    instruction(code, register, 0, immediate)
}

/// An operation on register `to` with register `from`.
fn between(code: u8, to: u8, from: u8) -> Instruction {
    instruction(code, from << 4 | to, 0, 0)
}

/// rN = *(u32 *)(r1 + offset)
fn load(register: u8, offset: i16) -> Instruction {
    instruction(LOAD_WORD, 0x10 | register, offset, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(rules: serde_json::Value) -> Folded {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        let mut folded = Folded::default();
        for rule in &rules {
            let (device, access) = parse(rule).unwrap();
            folded.add(rule.allow(), device, access);
        }
        folded
    }

    /// Runs the program on one access, as the kernel would.
    fn allows(program: &[Instruction], kind: i32, access: u8, major: i32, minor: i32) -> bool {
        let context = [kind | i32::from(access) << 16, major, minor];
        let mut registers = [0u64; 11];
        for step in program {
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let immediate = i64::from(step.immediate) as u64;
            registers[to] = match step.code {
                LOAD_WORD => context[step.offset as usize / 4] as u32 as u64,
                ADD => registers[to].wrapping_add(immediate),
                OR => registers[to] | registers[from],
                AND => registers[to] & immediate,
                SHIFT_RIGHT => registers[to] >> step.immediate,
                XOR_WORD => u64::from(registers[to] as u32 ^ step.immediate as u32),
                MOVE => immediate,
                MOVE_WORD => u64::from(registers[from] as u32),
                MOVE_REGISTER => registers[from],
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
        }
        panic!("the program has no end");
    }

    #[test]
    fn partial_rules_add_up() {
        let folded = fold(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "w"}
        ]));
        let program = folded.compile();
        assert!(allows(&program, DEV_CHAR, READ | WRITE, 10, 200));
        assert!(!allows(&program, DEV_CHAR, READ | MKNOD, 10, 200));
        assert!(!allows(&program, DEV_BLOCK, READ, 10, 200));
    }

    #[test]
    fn the_default_devices_are_always_there() {
        let program = program(&[]).unwrap().unwrap();
        assert!(allows(&program, DEV_CHAR, READ | WRITE, 1, 3));
        assert!(allows(&program, DEV_CHAR, READ | WRITE, 136, 7));
        assert!(allows(&program, DEV_BLOCK, MKNOD, 8, 0));
        assert!(!allows(&program, DEV_BLOCK, READ, 8, 0));
        assert!(!allows(&program, DEV_CHAR, READ, 1, 1));
    }

    #[test]
    fn a_privileged_container_needs_no_program() {
        let rules = serde_json::json!([{"allow": true, "access": "rwm"}]);
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        assert_eq!(program(&rules).unwrap(), None);
    }

    #[test]
    fn a_denied_exception_hits_any_of_its_accesses() {
        let folded = fold(serde_json::json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "access": "w"}
        ]));
        let program = folded.compile();
        assert!(!allows(&program, DEV_BLOCK, READ | WRITE, 8, 1));
        assert!(allows(&program, DEV_BLOCK, READ, 8, 1));
        assert!(allows(&program, DEV_CHAR, WRITE, 8, 1));
    }

    #[test]
    fn wrong_rules_are_refused() {
        let rule: LinuxDeviceCgroup =
            serde_json::from_value(serde_json::json!({"allow": true, "access": "rx"})).unwrap();
        assert!(program(&[rule]).unwrap_err().to_string().contains("access 'x'"));
    }
}
