//! Emits the classic BPF of a filter: a binary search over ranges of numbers, then conditions on arguments.
//! The search keeps the filter fast, and short enough for any profile (4096 instructions are the kernel's limit).

use std::collections::BTreeMap;

use libc::sock_filter;

use super::{Architectures, table};
use crate::error::{Error, Result};
use crate::spec::LinuxSeccompOperator as Operator;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Bit of the number by which x32 calls are told from those of x86-64.
const X32_BIT: u32 = 0x4000_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const MAX_INSTRUCTIONS: usize = 4096;

// linux/filter.h
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

// struct seccomp_data
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub argument: u32,
    pub operator: Operator,
    pub mask: u64,
    pub value: u64,
}

/// What to do for one system call, an index of [`table::CALLS`], under any of the alternatives.
pub(super) struct Rule {
    pub call: usize,
    pub action: u32,
    pub alternatives: Vec<Vec<Condition>>,
}

/// An action, if all conditions hold.
type Conditional = (Vec<Condition>, u32);

/// What to do for one number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    /// Tried in order.
    conditional: Vec<Conditional>,
    otherwise: u32,
}

impl Decision {
    fn plain(action: u32) -> Decision {
        Decision {
            conditional: Vec::new(),
            otherwise: action,
        }
    }
}

/// The whole filter.
pub(super) fn program(default: u32, architectures: &Architectures, rules: &[Rule]) -> Result<Vec<sock_filter>> {
    let mut ranges = ranges(default, rules, |call| call.1, 0, X32_BIT);
    ranges.extend(match architectures.x32 {
        true => self::ranges(default, rules, |call| call.3, X32_BIT, 0),
        false => vec![(X32_BIT, Decision::plain(KILL_PROCESS))],
    });
    let native = search(&ranges);
    let mut program = vec![step(LOAD, ARCHITECTURE)];
    section(&mut program, AUDIT_ARCH_X86_64, native);
    if architectures.i386 {
        let ranges = self::ranges(default, rules, |call| call.2, 0, 0);
        section(&mut program, AUDIT_ARCH_I386, search(&ranges));
    }
    program.push(step(RETURN, KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "linux.seccomp: the profile needs {} instructions, the kernel takes {MAX_INSTRUCTIONS}",
            program.len()
        )));
    }
    Ok(program)
}

/// The code for one architecture, skipped for any other.
fn section(program: &mut Vec<sock_filter>, architecture: u32, code: Vec<sock_filter>) {
    program.push(jump(JUMP_EQUAL, architecture, 1, 0));
    program.push(step(JUMP, code.len() as u32 + 1));
    program.push(step(LOAD, NUMBER));
    program.extend(code);
}

/// Where each range of equal decisions begins, from `first` on, for the numbers that `number` takes from the table.
/// Numbers above all that the profile knows, but below `end`, are calls younger than it: they fail with ENOSYS where
/// they would be refused, so that C libraries fall back to older calls (as runc does).
fn ranges(
    default: u32,
    rules: &[Rule],
    number: impl Fn(&(&str, i16, i16, i16)) -> i16,
    first: u32,
    end: u32,
) -> Vec<(u32, Decision)> {
    let mut decisions: BTreeMap<u32, (Vec<Conditional>, Option<u32>)> = BTreeMap::new();
    let mut newest = None;
    for rule in rules {
        let Ok(number) = u32::try_from(number(&table::CALLS[rule.call])) else {
            continue;
        };
        newest = newest.max(Some(number));
        if rule.action == default {
            continue;
        }
        let (conditional, plain) = decisions.entry(first + number).or_default();
        for alternative in &rule.alternatives {
            match alternative.is_empty() {
                true => *plain = plain.or(Some(rule.action)),
                false => conditional.push((alternative.clone(), rule.action)),
            }
        }
    }
    let mut ranges = vec![(first, Decision::plain(default))];
    let mut next = first;
    for (number, (conditional, plain)) in decisions {
        if number > next {
            begin(&mut ranges, next, Decision::plain(default));
        }
        let otherwise = plain.unwrap_or(default);
        begin(&mut ranges, number, Decision { conditional, otherwise });
        next = number + 1;
    }
    begin(&mut ranges, next, Decision::plain(default));
    if let Some(newest) = newest.filter(|_| default != ALLOW && default != LOG) {
        let unknown = first + newest + 1;
        if end == 0 || unknown < end {
            begin(&mut ranges, unknown, Decision::plain(ENOSYS));
        }
    }
    ranges
}

/// Start a range, unless it only goes on with the last one.
fn begin(ranges: &mut Vec<(u32, Decision)>, start: u32, decision: Decision) {
    match ranges.last_mut() {
        Some((last, same)) if *last == start => *same = decision,
        Some((_, same)) if *same == decision => (),
        _ => ranges.push((start, decision)),
    }
}

/// Binary search for the range of the number in the accumulator.
fn search(ranges: &[(u32, Decision)]) -> Vec<sock_filter> {
    if let [(_, decision)] = ranges {
        return decide(decision);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (low, pivot, high) = (search(low), high[0].0, search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(length) => vec![jump(JUMP_GREATER_EQUAL, pivot, length, 0)],
        // Conditional jumps reach 255 instructions only.
        Err(_) => vec![jump(JUMP_GREATER_EQUAL, pivot, 0, 1), step(JUMP, low.len() as u32)],
    };
    code.extend(low);
    code.extend(high);
    code
}

fn decide(decision: &Decision) -> Vec<sock_filter> {
    let mut code = Vec::new();
    for (conditions, action) in &decision.conditional {
        let mut rule: Vec<Step> = conditions.iter().flat_map(compare).collect();
        rule.push(Step::Plain(step(RETURN, *action)));
        code.extend(resolve(&rule));
    }
    code.push(step(RETURN, decision.otherwise));
    code
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The condition holds: behind its last instruction, this many further.
    Holds(u8),
    /// It does not: behind the rule.
    Fails,
}

/// An instruction, or a jump whose targets are still open.
enum Step {
    Plain(sock_filter),
    Jump { code: u16, value: u32, yes: To, no: To },
}

/// The upper halves decide, unless they are equal.
fn compare(condition: &Condition) -> Vec<Step> {
    let half = |shift: u32| ((condition.value >> shift) as u32, (condition.mask >> shift) as u32);
    let ((high, high_mask), (low, low_mask)) = (half(32), half(0));
    let at = ARGUMENTS + 8 * condition.argument;
    let masked = condition.operator == Operator::ScmpCmpMaskedEq;
    let load = |offset: u32, mask: u32| {
        let mut steps = vec![Step::Plain(step(LOAD, offset))];
        if masked {
            steps.push(Step::Plain(step(AND, mask)));
        }
        steps
    };
    let test = |code: u16, value: u32, yes: To, no: To| Step::Jump { code, value, yes, no };
    let mut steps = load(at + 4, high_mask);
    match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => {
            steps.push(test(JUMP_EQUAL, high, To::Next, To::Fails));
            steps.extend(load(at, low_mask));
            steps.push(test(JUMP_EQUAL, low, To::Next, To::Fails));
        }
        Operator::ScmpCmpNe => {
            steps.push(test(JUMP_EQUAL, high, To::Next, To::Holds(2)));
            steps.extend(load(at, low_mask));
            steps.push(test(JUMP_EQUAL, low, To::Fails, To::Next));
        }
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => {
            steps.push(test(JUMP_GREATER, high, To::Holds(3), To::Next));
            steps.push(test(JUMP_EQUAL, high, To::Next, To::Fails));
            steps.extend(load(at, low_mask));
            let code = match condition.operator {
                Operator::ScmpCmpGt => JUMP_GREATER,
                _ => JUMP_GREATER_EQUAL,
            };
            steps.push(test(code, low, To::Next, To::Fails));
        }
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            steps.push(test(JUMP_GREATER, high, To::Fails, To::Next));
            steps.push(test(JUMP_EQUAL, high, To::Next, To::Holds(2)));
            steps.extend(load(at, low_mask));
            let code = match condition.operator {
                Operator::ScmpCmpLt => JUMP_GREATER_EQUAL,
                _ => JUMP_GREATER,
            };
            steps.push(test(code, low, To::Fails, To::Next));
        }
    }
    steps
}

fn resolve(rule: &[Step]) -> Vec<sock_filter> {
    let offset = |at: usize, to: To| match to {
        To::Next => 0,
        To::Holds(steps) => steps,
        To::Fails => (rule.len() - at - 1) as u8,
    };
    rule.iter()
        .enumerate()
        .map(|(at, step)| match step {
            Step::Plain(plain) => *plain,
            Step::Jump { code, value, yes, no } => jump(*code, *value, offset(at, *yes), offset(at, *no)),
        })
        .collect()
}

fn step(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const AUDIT_ARCH_X86_64: u32 = super::AUDIT_ARCH_X86_64;
    pub const AUDIT_ARCH_I386: u32 = super::AUDIT_ARCH_I386;

    pub use super::super::interpreter::run;

    #[test]
    fn far_jumps_are_bridged() {
        // Alternating decisions make the tree as large as it gets: two subtrees of far more than 255 instructions.
        let rules: Vec<Rule> = (0..table::CALLS.len())
            .filter(|&call| table::CALLS[call].1 % 2 == 0)
            .map(|call| Rule {
                call,
                action: ALLOW,
                alternatives: vec![vec![]],
            })
            .collect();
        let all = Architectures {
            x86_64: true,
            i386: true,
            x32: true,
        };
        let program = program(0x0005_0001, &all, &rules).unwrap();
        for (_, number, ..) in table::CALLS.iter().filter(|call| call.1 >= 0) {
            let expected = if number % 2 == 0 { ALLOW } else { 0x0005_0001 };
            let got = run(&program, AUDIT_ARCH_X86_64, *number as u32, [0; 6]);
            assert!(
                got == expected || got == ENOSYS && number % 2 == 1,
                "{number}: {got:#x}"
            );
        }
    }
}
