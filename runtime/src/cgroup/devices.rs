//! Device rules as a BPF program of type CGROUP_DEVICE, attached to the container's group.
//! config-linux.md, "Allowed Device list"; the rules are folded as runc folds them, so partial rules add up.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::spec::{LinuxDeviceCgroup, LinuxDeviceType};
use crate::syscall;

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
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
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

    /// Registers: r2 type, r3 access, r4 major, r5 minor.
    fn compile(&self) -> Vec<Instruction> {
        let mut code = vec![
            load(2, 0),
            with_immediate(0x57, 2, 0xffff), // r2 &= 0xffff
            load(3, 0),
            with_immediate(0x77, 3, 16), // r3 >>= 16
            load(4, 4),
            load(5, 8),
        ];
        for (device, access) in &self.exceptions {
            let mut test = Vec::new();
            if let Some(kind) = device.kind {
                test.push(with_immediate(0x55, 2, kind)); // if r2 != kind
            }
            if let Some(major) = device.major {
                test.push(with_immediate(0x55, 4, major));
            }
            if let Some(minor) = device.minor {
                test.push(with_immediate(0x55, 5, minor));
            }
            if *access != ALL {
                test.push(instruction(0xbf, 0x31, 0, 0)); // r1 = r3
                test.push(with_immediate(0x57, 1, (*access).into())); // r1 &= access
                test.push(match self.allow {
                    // Allowed exceptions must cover all that is asked for …
                    false => instruction(0x5d, 0x31, 0, 0), // if r1 != r3
                    // … denied ones hit when they touch any of it.
                    true => with_immediate(0x15, 1, 0), // if r1 == 0
                });
            }
            let length = test.len() + 2;
            for (index, jump) in test.iter_mut().enumerate() {
                if matches!(jump.code, 0x55 | 0x5d | 0x15) {
                    jump.offset = (length - index - 1) as i16;
                }
            }
            code.append(&mut test);
            code.extend(answer(!self.allow));
        }
        code.extend(answer(self.allow));
        code
    }
}

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

/// rN = *(u32 *)(r1 + offset)
fn load(register: u8, offset: i16) -> Instruction {
    instruction(0x61, 0x10 | register, offset, 0)
}

/// r0 = allow; exit
fn answer(allow: bool) -> [Instruction; 2] {
    [with_immediate(0xb7, 0, allow.into()), with_immediate(0x95, 0, 0)]
}

/// Load the program and attach it to the group; it lives as long as the group.
pub(crate) fn attach(group: BorrowedFd, program: &[Instruction]) -> Result<()> {
    let license = c"Apache-2.0";
    let mut load = Vec::with_capacity(48);
    load.extend(BPF_PROG_TYPE_CGROUP_DEVICE.to_ne_bytes());
    load.extend((program.len() as u32).to_ne_bytes());
    load.extend((program.as_ptr() as u64).to_ne_bytes());
    load.extend((license.as_ptr() as u64).to_ne_bytes());
    load.extend([0; 24]);
    // SAFETY: the first 48 bytes of bpf_attr for PROG_LOAD; program and license live through the call.
    let fd = unsafe { syscall::bpf(BPF_PROG_LOAD, &mut load) }.map_err(|e| Error::os("load the device program", e))?;
    // SAFETY: PROG_LOAD returns a descriptor that we own.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut attach = Vec::with_capacity(16);
    attach.extend(group.as_raw_fd().to_ne_bytes());
    attach.extend(fd.as_raw_fd().to_ne_bytes());
    attach.extend(BPF_CGROUP_DEVICE.to_ne_bytes());
    attach.extend(BPF_F_ALLOW_MULTI.to_ne_bytes());
    // SAFETY: the first 16 bytes of bpf_attr for PROG_ATTACH; both descriptors are open.
    unsafe { syscall::bpf(BPF_PROG_ATTACH, &mut attach) }
        .map_err(|e| Error::os("attach the device program to the container's cgroup", e))?;
    Ok(())
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
        let mut registers = [0i64; 11];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let jump = match step.code {
                0x61 => {
                    registers[to] = context[step.offset as usize / 4].into();
                    false
                }
                0x57 => {
                    registers[to] &= i64::from(step.immediate);
                    false
                }
                0x77 => {
                    registers[to] >>= step.immediate;
                    false
                }
                0xbf => {
                    registers[to] = registers[from];
                    false
                }
                0xb7 => {
                    registers[to] = step.immediate.into();
                    false
                }
                0x55 => registers[to] != i64::from(step.immediate),
                0x15 => registers[to] == i64::from(step.immediate),
                0x5d => registers[to] != registers[from],
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            at += 1 + if jump { step.offset as usize } else { 0 };
        }
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
