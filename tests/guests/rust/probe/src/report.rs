//! Results of probes as printable text, fit for a header value.

use crate::raw::Answer;

/// Results in the order they came; each is `(name, value)`.
#[derive(Default)]
pub struct Report(pub Vec<(String, String)>);

impl Report {
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `empty`, the bytes in hexadecimal, or `status-<n>`.
pub fn hex_answer(answer: Answer) -> String {
    match answer {
        Ok(bytes) if bytes.is_empty() => "empty".to_owned(),
        Ok(bytes) => hex(&bytes),
        Err(status) => format!("status-{status}"),
    }
}

/// `none`, `empty`, or the text.
pub fn text(value: Option<String>) -> String {
    match value {
        None => "none".to_owned(),
        Some(value) if value.is_empty() => "empty".to_owned(),
        Some(value) => value,
    }
}

/// The status as a number: 0 for any answer.
pub fn status<T>(answer: Result<T, u32>) -> u32 {
    answer.err().unwrap_or(0)
}

/// `a=1,b=2` of names and statuses.
pub fn statuses(list: &[(&str, u32)]) -> String {
    let items: Vec<String> = list
        .iter()
        .map(|(name, status)| format!("{name}={status}"))
        .collect();
    items.join(",")
}
