//! Which program a container runs: the pod's `command` and `args` over the image's entrypoint and cmd.
//!
//! Follows "Define a Command and Arguments for a Container" of the Kubernetes documentation: a `command` silences
//! both of the image's lists, `args` alone silence only its cmd.

/// The argument vector of a container; empty when neither pod nor image names a program.
#[must_use]
pub fn merge(command: &[String], args: &[String], entrypoint: &[String], cmd: &[String]) -> Vec<String> {
    let (program, arguments) = match (command.is_empty(), args.is_empty()) {
        (true, true) => (entrypoint, cmd),
        (true, false) => (entrypoint, args),
        (false, _) => (command, args),
    };
    program.iter().chain(arguments).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_four_cases_of_the_documentation() {
        let (entrypoint, cmd) = (list("/ep-1"), list("foo bar"));
        for (command, args, expected) in [
            ("", "", "/ep-1 foo bar"),
            ("/ep-2", "", "/ep-2"),
            ("", "zoo boo", "/ep-1 zoo boo"),
            ("/ep-2", "zoo boo", "/ep-2 zoo boo"),
        ] {
            assert_eq!(merge(&list(command), &list(args), &entrypoint, &cmd), list(expected));
        }
    }
}
