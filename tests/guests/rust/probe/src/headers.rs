//! Probes of header maps and trailers, the same for both directions.

use proxy_wasm::hostcalls;
use proxy_wasm::types::MapType;

use crate::direction::Direction;
use crate::raw;
use crate::report::{hex, status, text, Report};

/// Runs the headers probe `what` of `direction`; true if there is one of that name.
pub fn probe(direction: Direction, what: &str, count: usize, report: &mut Report) -> bool {
    let map = direction.headers();
    let mut result = |value: String| report.add(format!("{}-{what}", direction.name()), value);
    match what {
        "get" => result(get(map)),
        "pairs" => result(pairs(map)),
        "count" => result(format!("{}", get_all(map).len() == count)),
        "size" => result(format!(
            "{:?}",
            raw::header_map_size(direction.headers_id()).map(|size| size > 0)
        )),
        "add" => {
            add(map, "x-added", "1");
            add(map, "x-added", "2");
        }
        "set" => {
            set(map, "x-in", Some("replaced"));
            set(map, "x-created", Some("new"));
        }
        "remove" => {
            set(map, "x-in", None);
            set(map, "x-not-there", None);
        }
        "whole" => whole(map),
        "case" => {
            add(map, "X-Upper-Case", "Yes");
            result(text(value(map, "x-upper-case")));
        }
        "bytes" => result(bytes(map)),
        "empty" => {
            set(map, "x-empty", Some(""));
            result(text(value(map, "x-empty")));
        }
        "pseudo" => pseudo(direction),
        _ => return false,
    }
    true
}

/// Reads one trailer, adds, sets and removes others; gives the one that was read.
pub fn trailers(direction: Direction) -> String {
    let map = direction.trailers();
    let found = text(value(map, "x-in-trailer"));
    add(map, "x-added-trailer", "1");
    add(map, "x-added-trailer", "2");
    set(map, "x-set-trailer", Some("set"));
    set(map, "x-in-trailer-remove", None);
    found
}

/// The statuses of reading `:path` from each map and of an unknown one.
pub fn map_statuses() -> Vec<(&'static str, u32)> {
    let names = [
        "map0", "map1", "map2", "map3", "map4", "map5", "map6", "map7", "map8",
    ];
    (0..)
        .zip(names)
        .map(|(map, name)| (name, status(raw::header(map, ":path"))))
        .collect()
}

fn value(map: MapType, name: &str) -> Option<String> {
    hostcalls::get_map_value(map, name).unwrap()
}

fn get_all(map: MapType) -> Vec<(String, Vec<u8>)> {
    hostcalls::get_map_bytes(map).unwrap()
}

fn add(map: MapType, name: &str, value: &str) {
    hostcalls::add_map_value(map, name, value).unwrap();
}

fn set(map: MapType, name: &str, value: Option<&str>) {
    hostcalls::set_map_value(map, name, value).unwrap();
}

fn get(map: MapType) -> String {
    let names = ["x-in", "X-IN", "x-not-there", "x-in-empty"];
    names.map(|name| text(value(map, name))).join("|")
}

fn pairs(map: MapType) -> String {
    let shown = |name: &str| name.starts_with("x-in") || [":method", ":path", ":status"].contains(&name);
    let listed: Vec<String> = get_all(map)
        .iter()
        .filter(|(name, _)| shown(name))
        .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
        .collect();
    listed.join("|")
}

fn whole(map: MapType) {
    let all = get_all(map);
    let mut kept: Vec<(&str, &[u8])> = all
        .iter()
        .filter(|(name, _)| name != "x-in")
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    kept.push(("x-whole", b"1"));
    kept.push(("x-whole", b"2"));
    hostcalls::set_map_bytes(map, kept).unwrap();
}

fn bytes(map: MapType) -> String {
    hostcalls::add_map_value_bytes(map, "x-bytes", &[b'a', 0x80, 0xe9, 0xff, b'z']).unwrap();
    hex(&hostcalls::get_map_value_bytes(map, "x-bytes")
        .unwrap()
        .unwrap_or_default())
}

fn pseudo(direction: Direction) {
    match direction {
        Direction::Request => {
            set(MapType::HttpRequestHeaders, ":path", Some("/rewritten?by=probe"));
            set(
                MapType::HttpRequestHeaders,
                ":authority",
                Some("rewritten.example"),
            );
        }
        Direction::Response => set(MapType::HttpResponseHeaders, ":status", Some("203")),
    }
}
