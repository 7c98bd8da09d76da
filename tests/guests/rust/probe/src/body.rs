//! Probes of bodies, the same for both directions.
//!
//! None of the outcomes depends on how the body was cut into chunks.

use proxy_wasm::hostcalls;

use crate::direction::Direction;
use crate::raw;
use crate::report::{hex_answer, Report};

/// "As much as there is."
pub const WHOLE: usize = i32::MAX as usize;

/// Probes that change each chunk as it passes.
pub const STREAMING: [&str; 4] = ["body-append", "body-prepend", "body-upper", "body-drop"];

/// Probes that withhold the body until all of it has come.
pub const BUFFERING: [&str; 8] = [
    "body-pause",
    "body-pause-upper",
    "body-replace",
    "body-empty",
    "body-front",
    "body-middle",
    "body-tail",
    "body-part",
];

/// Applies the streaming probe `what` to one chunk of `size` bytes.
pub fn stream_chunk(direction: Direction, what: &str, size: usize, first: bool, last: bool) {
    let body = direction.body();
    match what {
        "body-append" if last => hostcalls::set_buffer(body, WHOLE, 0, b"[appended]").unwrap(),
        "body-prepend" if first => hostcalls::set_buffer(body, 0, 0, b"[prepended]").unwrap(),
        "body-upper" => upper(direction, size),
        "body-drop" => hostcalls::set_buffer(body, 0, WHOLE, b"").unwrap(),
        _ => (),
    }
}

/// Applies the buffering probe `what` to the whole body.
pub fn whole_body(direction: Direction, what: &str, report: &mut Report) {
    let body = direction.body();
    let size = raw::buffer_status(direction.body_id()).map_or(0, |(size, _)| size);
    let mut result = |value: String| report.add(format!("{}-{what}", direction.name()), value);
    match what {
        "body-pause-upper" => upper(direction, WHOLE),
        "body-replace" => hostcalls::set_buffer(body, 0, WHOLE, b"[replaced]").unwrap(),
        "body-empty" => hostcalls::set_buffer(body, 0, WHOLE, b"").unwrap(),
        "body-front" => hostcalls::set_buffer(body, 0, 4, b"[front]").unwrap(),
        "body-middle" => result(raw::set_buffer(direction.body_id(), 2, 3, b"[middle]").to_string()),
        "body-tail" => result(raw::set_buffer(direction.body_id(), size, 7, b"[tail]").to_string()),
        "body-part" => result(parts(direction, size)),
        _ => (),
    }
}

fn upper(direction: Direction, size: usize) {
    let found = hostcalls::get_buffer(direction.body(), 0, size).unwrap();
    if let Some(mut bytes) = found.filter(|bytes| !bytes.is_empty()) {
        bytes.make_ascii_uppercase();
        hostcalls::set_buffer(direction.body(), 0, WHOLE, &bytes).unwrap();
    }
}

fn parts(direction: Direction, size: usize) -> String {
    let windows = [
        (0, 3),
        (2, 5),
        (size.saturating_sub(2), WHOLE),
        (size, 5),
        (size + 1, 5),
        (0, 0),
    ];
    windows
        .map(|(start, length)| hex_answer(raw::buffer(direction.body_id(), start, length)))
        .join("|")
}
