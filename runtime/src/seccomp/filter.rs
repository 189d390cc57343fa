//! A compiled filter, and its form in files: the state directory and the cache. seccomp(2).

/// A compiled filter.
#[derive(Clone)]
pub(crate) struct Filter {
    pub program: Vec<libc::sock_filter>,
    pub flags: u64,
}

impl Filter {
    /// Loading it makes a descriptor from which an agent reads what the process asks for.
    pub fn has_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// For the state directory: flags, then 8 bytes an instruction.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_le_bytes().to_vec();
        for step in &self.program {
            bytes.extend(step.code.to_le_bytes());
            bytes.extend([step.jt, step.jf]);
            bytes.extend(step.k.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`to_bytes`](Filter::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        let (flags, program) = bytes.split_first_chunk::<8>()?;
        let (steps, []) = program.as_chunks::<8>() else {
            return None;
        };
        let step = |step: &[u8; 8]| libc::sock_filter {
            code: u16::from_le_bytes([step[0], step[1]]),
            jt: step[2],
            jf: step[3],
            k: u32::from_le_bytes([step[4], step[5], step[6], step[7]]),
        };
        Some(Filter {
            flags: u64::from_le_bytes(*flags),
            program: steps.iter().map(step).collect(),
        })
    }
}
