//! Table tests of selector syntax, meaning and error texts.

use serde_json::json;

use super::*;

fn index(labels: &[(&str, &str)], fields: &[(&'static str, &str)]) -> Index {
    let mut labels: Vec<_> = labels.iter().map(|(k, v)| (Box::from(*k), Box::from(*v))).collect();
    labels.sort();
    let mut fields: Vec<_> = fields.iter().map(|(k, v)| (*k, Box::from(*v))).collect();
    fields.sort();
    Index {
        labels: labels.into(),
        fields: fields.into(),
        ..Index::default()
    }
}

#[test]
fn label_requirements() {
    let web = index(&[("app", "web"), ("tier", "front"), ("empty", ""), ("size", "5")], &[]);
    for (text, expected) in [
        ("", true),
        ("app", true),
        ("app=web", true),
        ("app==web", true),
        ("app=web,tier=back", false),
        ("app!=web", false),
        ("app!=db", true),
        ("missing!=x", true),
        ("missing", false),
        ("!missing", true),
        ("! app", false),
        ("app in (web, db)", true),
        ("app in (db)", false),
        ("app notin (db)", true),
        ("missing notin (a)", true),
        ("app notin (web,db)", false),
        ("empty=", true),
        ("empty", true),
        ("tier in (,front)", true),
        ("size>4", true),
        ("size>5", false),
        ("size<6,app=web", true),
        ("missing<6", false),
        (" app = web , tier in ( front ) ", true),
        ("app=web,!tier", false),
    ] {
        let selector = Selector::parse(text, "").unwrap();
        assert_eq!(selector.matches(&web), expected, "{text}");
    }
}

#[test]
fn label_errors_are_worded_as_kubernetes_words_them() {
    for (text, expected) in [
        ("app=web,", "found '', expected: identifier after ','"),
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("=a", "found '=', expected: !, identifier, or 'end of string'"),
        ("a in", "unable to parse requirement: found '' expected: '('"),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',', or ')'",
        ),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("a=(", "unable to parse requirement: found '(', expected: identifier"),
    ] {
        assert_eq!(Selector::parse(text, "").unwrap_err().to_string(), expected, "{text}");
    }
    let error = Selector::parse("a=b,-x=y", "").unwrap_err().to_string();
    assert!(
        error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-x\": name part must"),
        "{error}"
    );
    let error = Selector::parse("a in ()", "").unwrap_err().to_string();
    assert!(error.contains("values set can't be empty"), "{error}");
    let error = Selector::parse("size>big", "").unwrap_err().to_string();
    assert!(error.contains("must be an integer"), "{error}");
    let long = "x".repeat(64);
    for text in [
        format!("{long}=a"),
        format!("a={long}"),
        "a/b/c=d".into(),
        "/b=d".into(),
        "A/b=d".into(),
    ] {
        assert!(Selector::parse(&text, "").is_err(), "{text}");
    }
}

#[test]
fn fields() {
    let pod = index(
        &[],
        &[("metadata.name", "a=b"), ("spec.nodeName", "n1"), ("status.phase", "")],
    );
    for (text, expected) in [
        ("spec.nodeName=n1", true),
        ("spec.nodeName==n1", true),
        ("spec.nodeName!=n1", false),
        ("spec.nodeName=n1,metadata.name=a\\=b", true),
        ("spec.nodeName=n1,,metadata.name!=c", true),
        ("status.phase=", true),
        ("spec.other=", true),
    ] {
        assert_eq!(Selector::parse("", text).unwrap().matches(&pod), expected, "{text}");
    }
    assert_eq!(
        Selector::parse("", "a=b,c").unwrap_err().to_string(),
        "invalid selector: 'a=b,c'; can't understand 'c'"
    );
    assert!(Selector::parse("", "a=b\\x").is_err());
    assert!(Selector::parse("", "a=b\\").is_err());
    let selector = Selector::parse("", "spec.nodeName=n1,status.phase!=Failed").unwrap();
    assert_eq!(selector.field("spec.nodeName"), Some("n1"));
    assert_eq!(selector.field("status.phase"), None);
    assert_eq!(
        selector.field_paths().collect::<Vec<_>>(),
        ["spec.nodeName", "status.phase"]
    );
}

#[test]
fn label_selector_objects() {
    let web = index(&[("app", "web")], &[]);
    let parsed = |value| Selector::from_label_selector(&value).unwrap();
    assert!(!parsed(json!(null)).matches(&web), "a missing selector selects nothing");
    assert!(parsed(json!({})).matches(&web), "an empty selector selects everything");
    assert!(parsed(json!({"matchLabels": {"app": "web"}})).matches(&web));
    assert!(!parsed(json!({"matchLabels": {"app": "db"}})).matches(&web));
    let expressions = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
    assert!(parsed(expressions("In", &["web"])).matches(&web));
    assert!(!parsed(expressions("NotIn", &["web"])).matches(&web));
    assert!(parsed(expressions("Exists", &[])).matches(&web));
    assert!(!parsed(expressions("DoesNotExist", &[])).matches(&web));
    let error = Selector::from_label_selector(&expressions("Like", &[])).unwrap_err();
    assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
    assert!(Selector::from_label_selector(&expressions("In", &[])).is_err());
    assert!(Selector::from_map([("app", "web")]).matches(&web));
    assert!(!Selector::from_map([("app", "web"), ("x", "y")]).matches(&web));
}
