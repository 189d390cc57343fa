//! Extended regular expressions over container ids, by the C library: `delete --regex`, as crun has it. regcomp(3).

use std::ffi::CString;
use std::mem::MaybeUninit;

use hull_runtime::error::{Error, Result};

/// A compiled expression.
pub(super) struct Pattern {
    compiled: libc::regex_t,
}

impl Pattern {
    /// Compile `text`.
    pub fn new(text: &str) -> Result<Pattern> {
        let invalid = || Error::invalid(format!("{text:?} is no extended regular expression"));
        let pattern = CString::new(text).map_err(|_| invalid())?;
        let mut compiled = MaybeUninit::uninit();
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: both pointers are valid through the call.
        if unsafe { libc::regcomp(compiled.as_mut_ptr(), pattern.as_ptr(), flags) } != 0 {
            return Err(invalid());
        }
        // SAFETY: regcomp gave 0, and so has written all of it.
        let compiled = unsafe { compiled.assume_init() };
        Ok(Pattern { compiled })
    }

    /// It matches some part of `id`.
    pub fn matches(&self, id: &str) -> bool {
        // SAFETY: the expression is compiled, the string NUL-terminated, and no places of matches are asked for.
        let found =
            |id: CString| unsafe { libc::regexec(&raw const self.compiled, id.as_ptr(), 0, std::ptr::null_mut(), 0) };
        CString::new(id).is_ok_and(|id| found(id) == 0)
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: compiled by regcomp, and not used after this.
        unsafe { libc::regfree(&raw mut self.compiled) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_id_is_enough() {
        let pattern = Pattern::new("^web-[0-9]+$|blue").unwrap();
        for (id, matches) in [("web-12", true), ("web-", false), ("x-blue-1", true), ("Web-1", false)] {
            assert_eq!(pattern.matches(id), matches, "{id}");
        }
        assert!(Pattern::new("web-[").is_err());
    }
}
