//! Flags and operands. `--name value`, `--name=value` and `-n value` are the same; one dash or two makes no difference,
//! as in the Go programs whose command lines engines were written for.

use std::path::Path;

use hull_runtime::error::{Error, Result};

/// What a command understands.
pub(super) struct Flags {
    /// Flags without a value; aliases are separated by `|`, the first is the name.
    pub switches: &'static [&'static str],
    /// Flags with one.
    pub values: &'static [&'static str],
    /// Flags may stand behind operands too. Not where a foreign command line follows.
    pub interspersed: bool,
}

/// A parsed command line.
#[derive(Debug, Default)]
pub(super) struct Args {
    flags: Vec<(&'static str, String)>,
    pub operands: Vec<String>,
}

impl Flags {
    pub fn parse(&self, arguments: &[String]) -> Result<Args> {
        let mut args = Args::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                args.operands.extend(rest.cloned());
                break;
            }
            if !argument.starts_with('-') || argument == "-" {
                args.operands.push(argument.clone());
                if self.interspersed {
                    continue;
                }
                args.operands.extend(rest.cloned());
                break;
            }
            let name = argument.trim_start_matches('-');
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if let Some(flag) = find(self.switches, name) {
                args.flags.push((flag, value.unwrap_or_else(|| "true".into())));
            } else if let Some(flag) = find(self.values, name) {
                let value = value.or_else(|| rest.next().cloned());
                let value = value.ok_or_else(|| Error::invalid(format!("flag needs an argument: --{flag}")))?;
                args.flags.push((flag, value));
            } else {
                return Err(Error::invalid(format!("flag provided but not defined: {argument}")));
            }
        }
        Ok(args)
    }
}

fn find(flags: &'static [&'static str], name: &str) -> Option<&'static str> {
    flags
        .iter()
        .find(|flag| flag.split('|').any(|alias| alias == name))
        .and_then(|flag| flag.split('|').next())
}

impl Args {
    /// The switch is on.
    pub fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| value != "false")
    }

    /// The last value given.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.flags
            .iter()
            .rev()
            .find(|(flag, _)| *flag == name)
            .map(|(_, value)| value.as_str())
    }

    /// A value that names a file; empty is none, as engines' templates have it.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.value(name).filter(|path| !path.is_empty()).map(Path::new)
    }

    /// All values given, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags
            .iter()
            .filter(move |(flag, _)| *flag == name)
            .map(|(_, value)| value.as_str())
    }

    /// A value that must be a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.value(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| Error::invalid(format!("--{name}: {value:?} is not a number in range")))
            })
            .transpose()
    }

    /// The operand at `index`, which is `what`.
    pub fn operand(&self, index: usize, what: &str) -> Result<&str> {
        self.operands
            .get(index)
            .map(String::as_str)
            .ok_or_else(|| Error::invalid(format!("{what} is missing")))
    }

    /// The container's id, the only operand.
    pub fn only_id(&self) -> Result<&str> {
        match self.operands.len() {
            0 | 1 => self.operand(0, "the container's ID"),
            _ => Err(Error::invalid(format!(
                "one operand, the container's ID, is wanted, not {:?}",
                self.operands
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: Flags = Flags {
        switches: &["detach|d"],
        values: &["bundle|b", "env|e"],
        interspersed: false,
    };

    fn parse(line: &str) -> Result<Args> {
        FLAGS.parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn all_spellings_are_the_same() {
        for line in [
            "--bundle /b -d c1",
            "-b /b --detach c1",
            "--bundle=/b --d c1",
            "-bundle /b --detach=true c1",
        ] {
            let args = parse(line).unwrap();
            assert_eq!(args.value("bundle"), Some("/b"), "{line}");
            assert!(args.is_set("detach"), "{line}");
            assert_eq!(args.only_id().unwrap(), "c1", "{line}");
        }
    }

    #[test]
    fn a_foreign_command_line_is_left_alone() {
        let args = parse("-e A=1 -e B=2 c1 ls -d --bundle").unwrap();
        assert_eq!(args.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(args.operands, ["c1", "ls", "-d", "--bundle"]);
        assert!(!args.is_set("detach"));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parse("--bunlde /b").unwrap_err().to_string(),
            "flag provided but not defined: --bunlde"
        );
        assert_eq!(
            parse("--bundle").unwrap_err().to_string(),
            "flag needs an argument: --bundle"
        );
        assert!(parse("c1 c2").unwrap().only_id().is_err());
        assert!(parse("-b x").unwrap().number::<u32>("bundle").is_err());
    }
}
