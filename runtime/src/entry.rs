//! The first instructions of the process, before the C library prepares itself (which costs more than a system call's
//! worth of `cpuid`, twice if the process then executes itself again): commands that bring containers into being go on
//! from a read-only mount of this binary, so that nothing inside can write to it (CVE-2019-5736).
//! Whatever fails here is tried again, and reported, by [`hull_runtime::sealed`].
//! Invariant: no memory is allocated, and no function of the C library is called: its own are not linked up yet.

use std::arch::{asm, naked_asm};

/// Commands whose process, or a child of it, gets into a container.
static COMMANDS: [&[u8]; 4] = [b"create", b"run", b"exec", b"warden"];
static SELF: [u8; 15] = *b"/proc/self/exe\0";
static EMPTY: [u8; 1] = *b"\0";

const SYS_CLOSE: usize = 3;
const SYS_STATFS: usize = 137;
const SYS_EXECVEAT: usize = 322;
const SYS_OPEN_TREE: usize = 428;
const SYS_MOUNT_SETATTR: usize = 442;
const AT_FDCWD: usize = -100isize as usize;
const AT_EMPTY_PATH: usize = 0x1000;
const OPEN_TREE_CLONE: usize = 1;
const OPEN_TREE_CLOEXEC: usize = 0o2_000_000;
/// Index of `f_flags` in struct statfs, and its bits. statfs(2).
const STATFS_FLAGS: usize = 10;
const STATFS_WORDS: usize = 15;
const ST_RDONLY: u64 = 1;
/// struct mount_attr: set MOUNT_ATTR_RDONLY, clear nothing, leave propagation and id mapping. mount_setattr(2).
static READ_ONLY: [u64; 4] = [1, 0, 0, 0];

/// Where the kernel jumps to: looks at the arguments, then goes on to the C library's own beginning with everything as
/// the kernel left it.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn hull_runtime_entry() -> ! {
    naked_asm!(
        "mov rbx, rsp",
        "mov r13, rdx",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {protect}",
        "mov rsp, rbx",
        "mov rdx, r13",
        "xor ebp, ebp",
        "jmp _start",
        protect = sym protect,
    )
}

/// `stack` is what the kernel prepared: argc, argv, NULL, envp, NULL. Comes back if there is nothing to do, or it failed.
unsafe extern "C" fn protect(stack: *const usize) {
    // SAFETY: the layout of a new process's stack (System V ABI, "Process Initialization").
    unsafe {
        let argc = *stack;
        let argv = stack.add(1);
        if !names_command(argc, argv) || is_read_only() {
            return;
        }
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        let tree = call(SYS_OPEN_TREE, AT_FDCWD, SELF.as_ptr() as usize, flags, 0, 0);
        if tree < 0 {
            return;
        }
        let tree = tree as usize;
        let empty = EMPTY.as_ptr() as usize;
        let attributes = READ_ONLY.as_ptr() as usize;
        if call(
            SYS_MOUNT_SETATTR,
            tree,
            empty,
            AT_EMPTY_PATH,
            attributes,
            size_of_val(&READ_ONLY),
        ) == 0
        {
            let envp = argv.add(argc + 1);
            call(SYS_EXECVEAT, tree, empty, argv as usize, envp as usize, AT_EMPTY_PATH);
        }
        call(SYS_CLOSE, tree, 0, 0, 0, 0);
    }
}

/// One of the arguments is a command that needs protection. One that only looks like it costs a little time.
unsafe fn names_command(argc: usize, argv: *const usize) -> bool {
    let mut index = 1;
    while index < argc {
        // SAFETY: argv has argc strings.
        let argument = unsafe { *argv.add(index) } as *const u8;
        let mut command = 0;
        while command < COMMANDS.len() {
            // SAFETY: the string is NUL-terminated.
            if unsafe { equals(argument, COMMANDS[command]) } {
                return true;
            }
            command += 1;
        }
        index += 1;
    }
    false
}

unsafe fn equals(string: *const u8, name: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() {
        // SAFETY: the bytes before this one were equal to those of `name`, none of which is NUL.
        if unsafe { *string.add(at) } != name[at] {
            return false;
        }
        at += 1;
    }
    // SAFETY: as above.
    unsafe { *string.add(at) == 0 }
}

fn is_read_only() -> bool {
    let mut statistics = std::mem::MaybeUninit::<[u64; STATFS_WORDS]>::uninit();
    let words = statistics.as_mut_ptr().cast::<u64>();
    // SAFETY: struct statfs is 15 words on this architecture, and read only where the kernel wrote it.
    unsafe {
        call(SYS_STATFS, SELF.as_ptr() as usize, words as usize, 0, 0, 0) == 0
            && words.add(STATFS_FLAGS).read() & ST_RDONLY != 0
    }
}

/// A system call of up to five arguments; negative is an errno.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: by the contract of the system call; the kernel changes only rax, rcx, r11 and memory it is pointed at.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
