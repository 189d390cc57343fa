//! placeholder
/// Whether `name` fits the rule; the message if not.
pub fn is_name(_rule: super::NameRule, _name: &str) -> Result<(), String> { Ok(()) }
/// A name from generateName with five random characters out of `random`.
pub fn name_from_generate_name(prefix: &str, random: u64) -> String { format!("{prefix}{random}") }
