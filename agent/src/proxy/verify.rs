//! Having the kernel check an object's programs: most of the time that loading takes, so it is done on two threads. The
//! verifier works on several at a time for privileged callers (bpf(2), BPF_PROG_LOAD).

use std::sync::Mutex;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

/// Threads that wait for the kernel, the caller's among them.
const THREADS: usize = 2;

/// Loads every program of an object; else the first that the kernel refuses, by name.
///
/// # Errors
/// What the kernel said of that program.
pub(crate) fn load_all(ebpf: &mut Ebpf) -> Result<(), (String, ProgramError)> {
    let waiting = Mutex::new(ebpf.programs_mut());
    let next = || waiting.lock().ok()?.next();
    let work = || -> Result<(), (String, ProgramError)> {
        while let Some((name, program)) = next() {
            load(program).map_err(|error| (name.to_owned(), error))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(work)).collect();
        let own = work();
        let ended = others.into_iter().map(|other| match other.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.fold(own, Result::and)
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
