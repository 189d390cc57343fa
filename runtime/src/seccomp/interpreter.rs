//! The kernel's interpreter of filters, as far as the emitter uses it: for tests and fuzzers.
//! Documentation/networking/filter.rst.

use libc::sock_filter;

use super::emit::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN};

/// Runs the filter, as the kernel would.
pub fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend([0; 8]);
    arguments
        .iter()
        .for_each(|argument| data.extend(argument.to_le_bytes()));
    let mut accumulator = 0u32;
    let mut at = 0;
    loop {
        let step = program[at];
        at += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            LOAD => {
                let from = step.k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND => accumulator &= step.k,
            JUMP => at += step.k as usize,
            JUMP_EQUAL => branch(accumulator == step.k),
            JUMP_GREATER => branch(accumulator > step.k),
            JUMP_GREATER_EQUAL => branch(accumulator >= step.k),
            RETURN => return step.k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}
