//! `$(NAME)` expansion of command, args and env values.
//!
//! Follows Kubernetes' `third_party/forked/golang/expansion`: `$$` is a literal dollar, an unknown name stays as it
//! was written, anything else after a dollar is literal.

/// Expands every `$(NAME)` in `input` for which `lookup` has a value.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        rest = if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            tail
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            tail
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_a(input: &str) -> String {
        expand(input, |name| match name {
            "A" => Some("value"),
            "EMPTY" => Some(""),
            _ => None,
        })
    }

    #[test]
    fn names_expand_and_the_rest_stays() {
        for (input, expected) in [
            ("$(A)", "value"),
            ("x$(A)y$(A)", "xvalueyvalue"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$value"),
            ("$(MISSING)", "$(MISSING)"),
            ("$(EMPTY)", ""),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: $", "cost: $"),
            ("$é", "$é"),
        ] {
            assert_eq!(with_a(input), expected, "{input}");
        }
    }
}
