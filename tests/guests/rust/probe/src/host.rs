//! Probes of what is not the message: logs, metrics, properties, time, randomness, environment, statuses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proxy_wasm::hostcalls;
use proxy_wasm::types::LogLevel;

use crate::headers::map_statuses;
use crate::raw;
use crate::report::{hex, hex_answer, status, statuses, text, Report};

/// Runs the probe `what`; true if there is one of that name.
pub fn probe(what: &str, context_id: u32, root_id: u32, report: &mut Report) -> bool {
    let value = match what {
        "log-levels" => log_levels(),
        "metrics" => metrics(),
        "set-property" => set_property(),
        "time" => time(),
        "random" => random(),
        "env" => text(std::env::var("PROBE_ENV").ok()),
        "stdout" => stdout(),
        "clear-route-cache" => hex_answer(raw::foreign_function("clear_route_cache", b"")),
        "unknown-foreign" => hex_answer(raw::foreign_function("no_such_function", b"arguments")),
        "effective-context" => effective_context(context_id, root_id),
        "wrong-phase" => wrong_phase(),
        "bad-arguments" => bad_arguments(),
        "unavailable" => unavailable(),
        _ => return false,
    };
    report.add(what, value);
    true
}

/// One result `property-<phase>-<index>` for each of the comma-separated `paths`, whose segments are parted by `/`.
pub fn properties(phase: &str, paths: &str, report: &mut Report) {
    for (index, path) in paths.split(',').map(str::trim).enumerate() {
        let value = hex_answer(raw::property(&path.replace('/', "\0")));
        report.add(format!("property-{phase}-{index}"), format!("{path}={value}"));
    }
}

fn log_levels() -> String {
    let levels = [
        LogLevel::Trace,
        LogLevel::Debug,
        LogLevel::Info,
        LogLevel::Warn,
        LogLevel::Error,
        LogLevel::Critical,
    ];
    for level in levels {
        hostcalls::log(level, &format!("probe at level {}", level as u32)).unwrap();
    }
    hostcalls::log(LogLevel::Info, "").unwrap();
    (hostcalls::get_log_level().unwrap() as u32).to_string()
}

/// Changes are reported, not values, for metrics outlive the request and the VM.
fn metrics() -> String {
    let counter = raw::define_metric(0, "probe_counter").unwrap();
    let gauge = raw::define_metric(1, "probe_gauge").unwrap();
    let histogram = raw::define_metric(2, "probe_histogram").unwrap();
    let before = raw::metric(counter).unwrap();
    let increment = raw::increment_metric(counter, 3);
    let counted = raw::metric(counter).unwrap().wrapping_sub(before);
    let recorded = raw::record_metric(gauge, 10);
    let lowered = raw::increment_metric(gauge, -4);
    let gauged = raw::metric(gauge).unwrap();
    let observed = raw::record_metric(histogram, 42);
    let same = raw::define_metric(0, "probe_counter") == Ok(counter);
    format!(
        "counter={increment}:{counted},gauge={recorded}:{lowered}:{gauged},histogram={observed},\
         histogram-get={},counter-down={},unknown-get={},unknown-increment={},unknown-record={},again={same}",
        status(raw::metric(histogram)),
        raw::increment_metric(counter, -1),
        status(raw::metric(0x00ff_fffc)),
        raw::increment_metric(0x00ff_fffc, 1),
        raw::record_metric(0x00ff_fffc, 1),
    )
}

fn set_property() -> String {
    hostcalls::set_property(vec!["probe_value"], Some(b"stored")).unwrap();
    let first = hex_answer(raw::property("probe_value"));
    hostcalls::set_property(vec!["probe_value"], Some(b"stored again")).unwrap();
    hostcalls::set_property(vec!["probe_empty"], Some(b"")).unwrap();
    [
        first,
        hex_answer(raw::property("probe_value\0")),
        hex_answer(raw::property("probe_empty")),
    ]
    .join("|")
}

fn plausible(time: SystemTime) -> bool {
    let year = Duration::from_secs(365 * 86400);
    time > UNIX_EPOCH + 54 * year && time < UNIX_EPOCH + 200 * year
}

fn time() -> String {
    let host = hostcalls::get_current_time().unwrap();
    let wasi = SystemTime::now();
    let apart = wasi.duration_since(host).unwrap_or_else(|error| error.duration());
    format!(
        "host={},wasi={},together={}",
        plausible(host),
        plausible(wasi),
        apart < Duration::from_secs(5)
    )
}

/// Two draws, each of 32 bytes: both must succeed, and differ.
fn random() -> String {
    let draws = [raw::random::<32>(), raw::random::<32>()];
    match draws {
        [Ok(first), Ok(second)] => format!("differ={}", first != second),
        [Err(errno), _] | [_, Err(errno)] => format!("errno-{errno}"),
    }
}

fn stdout() -> String {
    println!("probe on stdout");
    println!("two\nlines");
    eprintln!("probe on stderr");
    print!("no line end");
    println!();
    "written".to_owned()
}

fn effective_context(context_id: u32, root_id: u32) -> String {
    statuses(&[
        ("unknown", raw::set_effective_context(0x7fff_fff0)),
        ("root", raw::set_effective_context(root_id)),
        ("stream", raw::set_effective_context(context_id)),
    ])
}

fn wrong_phase() -> String {
    let names = [
        "buffer0", "buffer1", "buffer2", "buffer3", "buffer4", "buffer5", "buffer6", "buffer7", "buffer8",
    ];
    let mut list = map_statuses();
    list.extend(
        (0..)
            .zip(names)
            .map(|(buffer, name)| (name, status(raw::buffer(buffer, 0, 16)))),
    );
    list.push(("set-response", raw::add_header(2, "x-wrong", "1")));
    list.push(("set-trailers", raw::add_header(1, "x-wrong", "1")));
    list.push(("set-body", raw::set_buffer(1, 0, 0, b"wrong")));
    list.push(("set-configuration", raw::set_buffer(7, 0, 0, b"wrong")));
    statuses(&list)
}

fn bad_arguments() -> String {
    statuses(&[
        ("map", status(raw::header(99, "x"))),
        ("map-size", status(raw::header_map_size(99))),
        ("buffer", status(raw::buffer(99, 0, 1))),
        ("buffer-status", status(raw::buffer_status(99))),
        ("log-level", raw::log(9, "probe at a level that is not one")),
        ("metric-type", status(raw::define_metric(9, "probe_bad"))),
        ("stream", raw::continue_stream(9)),
        ("close", raw::close_stream(9)),
        ("property", status(raw::property("no_such_property"))),
        ("property-empty", status(raw::property(""))),
    ])
}

fn unavailable() -> String {
    statuses(&[
        ("http-call", raw::http_call("no-such-upstream")),
        ("shared-data", status(raw::shared_data("no-such-key"))),
        ("queue", raw::resolve_queue("no-such-queue")),
    ])
}

/// A few bytes of each map, for the callback that logs.
pub fn log_phase() -> String {
    let reads = [
        (0, ":path"),
        (2, ":status"),
        (1, "x-in-trailer"),
        (3, "x-in-trailer"),
    ];
    reads
        .map(|(map, name)| match raw::header(map, name) {
            Ok(value) => hex(&value),
            Err(status) => format!("status-{status}"),
        })
        .join("|")
}
