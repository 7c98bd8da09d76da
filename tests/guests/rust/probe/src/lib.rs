//! Exercises the host, one behaviour at a time, and reports what it saw; made to compare hosts with each other.
//!
//! The request header `x-probe` lists the probes to run, parted by commas. Results come back as response headers
//! `x-probe-result-<probe>`; those that arise too late for that are written to the log, as all of them are.
//! The names are listed in the README of the guests. An unknown name is reported as `unknown`.

mod body;
mod direction;
mod headers;
mod host;
mod local;
mod raw;
mod report;

use log::info;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

use direction::Direction;
use report::Report;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Trace);
    proxy_wasm::set_root_context(|context_id| -> Box<dyn RootContext> { Box::new(Plugin { context_id }) });
}}

struct Plugin {
    context_id: u32,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_vm_start(&mut self, size: usize) -> bool {
        info!(
            "vm start, {} bytes: {:?}",
            size,
            self.get_vm_configuration().map(|text| report::hex(&text))
        );
        true
    }

    fn on_configure(&mut self, size: usize) -> bool {
        info!(
            "configure, {} bytes: {:?}",
            size,
            self.get_plugin_configuration().map(|text| report::hex(&text))
        );
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            context_id,
            root_id: self.context_id,
            probes: Vec::new(),
            properties: String::new(),
            report: Report::default(),
            body: [BodySeen::default(), BodySeen::default()],
        }))
    }
}

/// What has come of one direction's body.
#[derive(Default)]
struct BodySeen {
    bytes: usize,
    chunks: usize,
    ends: usize,
}

struct Stream {
    context_id: u32,
    root_id: u32,
    probes: Vec<String>,
    properties: String,
    report: Report,
    body: [BodySeen; 2],
}

impl Stream {
    /// The probes of one direction, by their names without it.
    fn probes_of(&self, direction: Direction) -> Vec<String> {
        let prefix = format!("{}-", direction.name());
        self.probes
            .iter()
            .filter_map(|probe| probe.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect()
    }

    fn wants(&self, direction: Direction, what: &str) -> bool {
        self.probes_of(direction).iter().any(|probe| probe == what)
    }

    fn run_header_probes(&mut self, direction: Direction, count: usize) {
        for what in self.probes_of(direction) {
            headers::probe(direction, &what, count, &mut self.report);
            let edits = body::STREAMING.contains(&what.as_str()) || body::BUFFERING.contains(&what.as_str());
            if edits {
                hostcalls::set_map_value(direction.headers(), "content-length", None).unwrap();
            }
        }
    }

    /// What a headers callback returns, for the probes that pause there.
    fn headers_action(&self, direction: Direction, end_of_stream: bool) -> Action {
        if self.wants(direction, "pause-resume") {
            raw::continue_stream(direction.stream_id());
            return Action::Pause;
        }
        if self.wants(direction, "wait-body") && !end_of_stream {
            return Action::Pause;
        }
        Action::Continue
    }

    fn run_body_probes(&mut self, direction: Direction, size: usize, last: bool) -> Action {
        let seen = &mut self.body[direction as usize];
        let first = seen.chunks == 0;
        seen.chunks += 1;
        seen.bytes += size;
        seen.ends += usize::from(last);

        let probes = self.probes_of(direction);
        for what in &probes {
            body::stream_chunk(direction, what, size, first, last);
        }
        if last {
            self.finish_body(direction, size);
        } else if self.withholds_body(direction) {
            return Action::Pause;
        }
        Action::Continue
    }

    fn withholds_body(&self, direction: Direction) -> bool {
        let holds = |what: &String| body::BUFFERING.contains(&what.as_str()) || what == "wait-body";
        self.probes_of(direction).iter().any(holds)
    }

    /// The body is complete; when it was withheld, `total` is its size.
    fn finish_body(&mut self, direction: Direction, total: usize) {
        for what in self.probes_of(direction) {
            body::whole_body(direction, &what, &mut self.report);
            match what.as_str() {
                "add-trailers" => {
                    let status = raw::add_header(direction.trailers_id(), "x-new-trailer", "yes");
                    self.report
                        .add(format!("{}-add-trailers", direction.name()), status.to_string());
                }
                "wait-body" => {
                    hostcalls::set_map_value(direction.headers(), "x-late", Some(&total.to_string()))
                        .unwrap();
                }
                "body-size" => {
                    let BodySeen { bytes, ends, .. } = self.body[direction as usize];
                    self.report.add(
                        format!("{}-body-size", direction.name()),
                        format!("bytes={bytes},ends={ends}"),
                    );
                }
                "body-local" => local::respond(422, "local from body\n"),
                _ => (),
            }
        }
    }

    fn run_trailer_probes(&mut self, direction: Direction) -> Action {
        let size = raw::buffer_status(direction.body_id()).map_or(0, |(size, _)| size);
        let withheld = self.withholds_body(direction);
        if withheld && self.body[direction as usize].ends == 0 {
            self.finish_body(direction, size);
        }
        if self.wants(direction, "trailers") {
            let found = headers::trailers(direction);
            self.report.add(format!("{}-trailers", direction.name()), found);
        }
        Action::Continue
    }
}

fn is_known(probe: &str) -> bool {
    KNOWN.contains(&probe)
        || ["request-", "response-"]
            .iter()
            .filter_map(|prefix| probe.strip_prefix(prefix))
            .any(|what| {
                KNOWN_BY_DIRECTION.contains(&what)
                    || body::STREAMING.contains(&what)
                    || body::BUFFERING.contains(&what)
            })
}

const KNOWN: [&str; 23] = [
    "log-levels",
    "metrics",
    "set-property",
    "time",
    "random",
    "env",
    "stdout",
    "clear-route-cache",
    "unknown-foreign",
    "effective-context",
    "wrong-phase",
    "bad-arguments",
    "unavailable",
    "local",
    "local-empty",
    "local-grpc",
    "local-twice",
    "local-late",
    "panic",
    "exit",
    "sleep",
    "log-headers",
    "response-panic",
];

const KNOWN_BY_DIRECTION: [&str; 19] = [
    "get",
    "pairs",
    "count",
    "size",
    "add",
    "set",
    "remove",
    "whole",
    "case",
    "bytes",
    "empty",
    "pseudo",
    "close",
    "trailers",
    "add-trailers",
    "wait-body",
    "body-size",
    "body-local",
    "pause-resume",
];

impl Context for Stream {
    fn on_done(&mut self) -> bool {
        info!("#{} done", self.context_id);
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, count: usize, end_of_stream: bool) -> Action {
        let probes = self.get_http_request_header("x-probe").unwrap_or_default();
        self.probes = probes
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        self.properties = self
            .get_http_request_header("x-probe-properties")
            .unwrap_or_default();
        for probe in self.probes.clone() {
            if !is_known(&probe) {
                self.report.add(probe, "unknown");
            }
        }

        self.run_header_probes(Direction::Request, count);
        for probe in self.probes.clone() {
            host::probe(&probe, self.context_id, self.root_id, &mut self.report);
        }
        if !self.properties.is_empty() {
            host::properties("request", &self.properties, &mut self.report);
        }
        for probe in self.probes.clone() {
            if local::probe(&probe) {
                return Action::Pause;
            }
        }
        self.headers_action(Direction::Request, end_of_stream)
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.run_body_probes(Direction::Request, size, end_of_stream)
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.run_trailer_probes(Direction::Request)
    }

    fn on_http_response_headers(&mut self, count: usize, end_of_stream: bool) -> Action {
        self.run_header_probes(Direction::Response, count);
        if !self.properties.is_empty() {
            host::properties("response", &self.properties, &mut self.report);
        }
        for (name, value) in &self.report.0 {
            self.set_http_response_header(&format!("x-probe-result-{name}"), Some(value));
        }
        for probe in self.probes.clone() {
            match probe.as_str() {
                "local-late" => {
                    local::respond(503, "local from response\n");
                    return Action::Pause;
                }
                "response-close" => {
                    raw::close_stream(Direction::Response.stream_id());
                    return Action::Pause;
                }
                "response-panic" => panic!("asked to panic"),
                _ => (),
            }
        }
        self.headers_action(Direction::Response, end_of_stream)
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.run_body_probes(Direction::Response, size, end_of_stream)
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        self.run_trailer_probes(Direction::Response)
    }

    fn on_log(&mut self) {
        if !self.properties.is_empty() {
            host::properties("log", &self.properties, &mut self.report);
        }
        if self.probes.iter().any(|probe| probe == "log-headers") {
            self.report.add("log-headers", host::log_phase());
        }
        for (name, value) in &self.report.0 {
            info!("#{} {}: {}", self.context_id, name, value);
        }
        info!("#{} log", self.context_id);
    }
}
