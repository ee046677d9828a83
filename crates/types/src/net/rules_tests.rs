use proptest::prelude::*;

use super::*;

fn domain(text: &str) -> Result<String, String> {
    text.parse::<DomainRule>().map(|rule| rule.to_string())
}

#[test]
fn domains_are_names_or_all_below_one() {
    for (text, name) in [
        ("example.org", "example.org"),
        ("Example.ORG.", "example.org"),
        ("*.example.org", "*.example.org"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.example.org", "1.example.org"),
    ] {
        assert_eq!(domain(text).as_deref(), Ok(name));
    }
    let many = "a.".repeat(300);
    let label = format!("{}.org", "x".repeat(64));
    for (text, why) in [
        ("", "empty label"),
        (".", "empty label"),
        ("a..b", "empty label"),
        ("example.org..", "empty label"),
        (".org", "empty label"),
        ("a\0.org", "NUL"),
        ("*", "a * "),
        ("*.", "a * "),
        ("*.com", "one label"),
        ("com", "one label"),
        ("a.*.org", "a * "),
        ("*a.org", "a * "),
        ("*.*.example.org", "a * "),
        ("bücher.example", "punycode"),
        ("-a.org", "hyphen"),
        ("a-.org", "hyphen"),
        ("a b.org", "no domain"),
        ("a/b.org", "no domain"),
        ("192.0.2.1", "CIDR"),
        (&many, "599 bytes"),
        (&label, "63 bytes"),
    ] {
        let error = domain(text).unwrap_err();
        assert!(error.contains(why), "{text:?}: {error}");
        assert!(error.len() < 200 && !error.contains('\0'), "{error}");
    }
}

#[test]
fn a_wildcard_covers_what_is_below_and_nothing_beside() {
    let rule: DomainRule = "*.example.org".parse().unwrap();
    for (name, covered) in [
        ("a.example.org", true),
        ("a.b.example.org", true),
        ("example.org", false),
        (".example.org", false),
        ("badexample.org", false),
        ("example.org.evil.net", false),
    ] {
        assert_eq!(rule.covers(name), covered, "{name}");
    }
    let rule: DomainRule = "example.org".parse().unwrap();
    assert!(rule.covers("example.org") && !rule.covers("a.example.org"));
}

#[test]
fn ports_have_one_text() {
    let text = |text: &str| text.parse::<PortRule>().map(|rule| rule.to_string());
    for (given, kept) in
        [("443", "443/tcp"), ("53/udp", "53/udp"), ("8000-8010/udp", "8000-8010/udp"), ("1-1", "1/tcp")]
    {
        assert_eq!(text(given).as_deref(), Ok(kept));
    }
    for bad in
        ["", "0", "65536", "+1", "1-", "-1", "2-1", "0-5", "443/", "443/sctp", "443/tcp/x", " 443", "44\0", "1-2-3"]
    {
        assert!(text(bad).unwrap_err().contains("from 1 to 65535"), "{bad:?}");
    }
    assert!(text(&"9".repeat(10_000)).unwrap_err().len() < 200);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,300}") {
        if let Ok(rule) = text.parse::<DomainRule>() {
            prop_assert_eq!(rule.as_str().parse::<DomainRule>(), Ok(rule.clone()), "its own text is a fixpoint");
        }
        if let Ok(rule) = text.parse::<PortRule>() {
            prop_assert_eq!(rule.to_string().parse::<PortRule>(), Ok(rule));
        }
    }

    #[test]
    fn a_port_rule_is_its_text(first in 1u16.., last in 1u16.., udp in any::<bool>()) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let rule = PortRule { protocol, first: first.min(last), last: first.max(last) };
        let json = serde_json::to_string(&rule).unwrap();
        prop_assert_eq!(serde_json::from_str::<PortRule>(&json).unwrap(), rule);
    }
}
