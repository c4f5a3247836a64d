//! W3C trace context: how a run, and each attempt in it, is named for whoever follows work across processes. A run is a span
//! of a trace, every attempt a span of its own below it; the names of spans follow from what they name, so that everybody who
//! knows a run's log finds the same ones.

use crate::base::hex;

/// A span that something happens in: its trace, and the span itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// 32 hex digits.
    pub trace: String,
    /// 16 hex digits.
    pub span: String,
}

impl Context {
    /// Reads the value of a `TRACEPARENT`. `None`: it is none, and by the standard counts as not being there.
    pub fn parse(text: &str) -> Option<Context> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let known = version == "00";
        // A later version may say more, behind what is known of it.
        let fits = is_hex(version, 2) && version != "ff" && is_hex(flags, 2) && !(known && parts.next().is_some());
        let named = |id: &str, digits| is_hex(id, digits) && id.bytes().any(|b| b != b'0');
        let good = fits && named(trace, 32) && named(span, 16);
        good.then(|| Context { trace: trace.to_owned(), span: span.to_owned() })
    }

    /// As a `TRACEPARENT` has it. What happens in it is recorded, in the run's log.
    pub fn header(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.span)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The span of a run, by its id.
pub fn span_of_run(run: &str) -> String {
    cut(&hex::sha256(run.as_bytes()))
}

/// The span of an attempt.
pub fn span_of(run: &str, task: &str, attempt: u32) -> String {
    cut(&hex::sha256(format!("{run}/{task}/{attempt}").as_bytes()))
}

fn cut(hash: &str) -> String {
    hash.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn what_is_written_is_read_again() {
        let context = Context { trace: TRACE.into(), span: SPAN.into() };
        assert_eq!(context.header(), format!("00-{TRACE}-{SPAN}-01"));
        assert_eq!(Context::parse(&context.header()), Some(context.clone()));
        assert_eq!(Context::parse(&format!("00-{TRACE}-{SPAN}-00")), Some(context.clone()), "not sampled");
        assert_eq!(Context::parse(&format!("cc-{TRACE}-{SPAN}-01-more")), Some(context), "of a later version");
    }

    #[test]
    fn what_is_none_counts_as_absent() {
        for bad in [
            String::new(),
            "nonsense".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}x-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01\n"),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(Context::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_attempt_has_a_span_of_its_own() {
        let all =
            [span_of_run("r"), span_of("r", "a", 1), span_of("r", "a", 2), span_of("r", "b", 1), span_of("q", "a", 1)];
        for (i, span) in all.iter().enumerate() {
            assert!(is_hex(span, 16), "{span}");
            assert!(!all[..i].contains(span), "{span}");
        }
    }
}
