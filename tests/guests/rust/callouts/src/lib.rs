//! Calls out as the request says, waits for all answers, and tells what came.
//!
//! `x-do` holds commands, separated by `;`:
//!
//! * `http UPSTREAM METHOD PATH TIMEOUT_MS [NAME=VALUE ...]`; `body=N` sends a body of N bytes
//! * `grpc UPSTREAM SERVICE METHOD MESSAGE`
//! * `stream UPSTREAM SERVICE METHOD MESSAGE,MESSAGE,...`; `-` for no message, `!` cancels at the first answer
//! * `trap`
//!
//! `x-then` holds commands that begin when all those are over.
//!
//! `x-phase` says where the stream waits: `request` (if it is not there), `request-body`, `response`, `response-body`;
//! or `none`: nothing waits, and the answers are logged. What came is in the header `x-callouts` of the response, or its
//! body in the last phase, or with `x-local` in a local response. A configuration is commands that run at the start; what
//! came of them is in `x-start`.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use std::cell::RefCell;
use std::time::Duration;

thread_local! {
    static AT_START: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin { calls: Calls::default() }) });
}}

#[derive(Default)]
struct Calls {
    open: Vec<(u32, Kind, usize)>,
    results: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http,
    Grpc,
    Stream { cancel: bool },
}

fn note(text: &str) {
    hostcalls::log(LogLevel::Info, text).unwrap();
}

impl Calls {
    fn start(&mut self, context: &dyn Context, commands: &str) {
        for command in commands.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            let words: Vec<&str> = command.split(' ').collect();
            let slot = self.results.len();
            match begin(context, &words) {
                Ok((id, kind)) => {
                    self.results.push(String::new());
                    self.open.push((id, kind, slot));
                }
                Err(problem) => self.results.push(format!("refused {problem}")),
            }
        }
    }

    fn find(&self, id: u32) -> Option<(Kind, usize)> {
        self.open
            .iter()
            .find(|call| call.0 == id)
            .map(|call| (call.1, call.2))
    }

    fn add(&mut self, id: u32, text: &str) {
        if let Some((_, slot)) = self.find(id) {
            let result = &mut self.results[slot];
            if !result.is_empty() {
                result.push(' ');
            }
            result.push_str(text);
        }
    }

    /// Returns whether all calls are over.
    fn over(&mut self, id: u32, text: &str) -> bool {
        self.add(id, text);
        self.open.retain(|call| call.0 != id);
        self.open.is_empty()
    }

    fn text(&self) -> String {
        self.results.join("; ")
    }

    fn http_response(&mut self, context: &dyn Context, id: u32, headers: usize, size: usize) -> bool {
        let text = if headers == 0 {
            let (code, message) = context.get_grpc_status();
            format!("failed {code} {}", message.unwrap_or_default())
        } else {
            let status = context
                .get_http_call_response_header(":status")
                .unwrap_or_default();
            let names: Vec<String> = context
                .get_http_call_response_headers_bytes()
                .iter()
                .filter(|(name, _)| name.starts_with("x-") || name == "set-cookie")
                .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
                .collect();
            let body = context
                .get_http_call_response_body(0, size.min(100))
                .unwrap_or_default();
            format!(
                "{status} {size} {} [{}]",
                String::from_utf8_lossy(&body),
                names.join(",")
            )
        };
        self.over(id, &text)
    }

    fn grpc_message(&mut self, context: &mut dyn Context, id: u32, size: usize) -> bool {
        let body = context
            .get_grpc_stream_message(0, size.min(100))
            .unwrap_or_default();
        let text = format!("message {size} {}", String::from_utf8_lossy(&body));
        match self.find(id) {
            Some((Kind::Stream { cancel: true }, _)) => {
                context.cancel_grpc_stream(id);
                self.over(id, &format!("{text} cancelled"))
            }
            Some((Kind::Stream { .. }, _)) => {
                self.add(id, &text);
                false
            }
            _ => self.over(id, &text),
        }
    }

    fn grpc_close(&mut self, context: &dyn Context, id: u32, status: u32) -> bool {
        let (_, message) = context.get_grpc_status();
        self.over(id, &format!("closed {status} {}", message.unwrap_or_default()))
    }
}

fn begin(context: &dyn Context, words: &[&str]) -> Result<(u32, Kind), String> {
    match words {
        ["http", upstream, method, path, timeout, rest @ ..] => {
            let mut headers = vec![
                (":method", *method),
                (":path", *path),
                (":authority", "of-the-plugin"),
            ];
            let mut body: Option<Vec<u8>> = None;
            for pair in rest {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                if name == "body" {
                    body = Some(vec![b'x'; value.parse().unwrap_or(0)]);
                } else {
                    headers.push((name, value));
                }
            }
            let timeout = Duration::from_millis(timeout.parse().unwrap_or(0));
            context
                .dispatch_http_call(upstream, headers, body.as_deref(), vec![], timeout)
                .map(|id| (id, Kind::Http))
                .map_err(|status| format!("{status:?}"))
        }
        ["grpc", upstream, service, method, message] => context
            .dispatch_grpc_call(
                upstream,
                service,
                method,
                vec![],
                Some(message.as_bytes()),
                Duration::from_secs(5),
            )
            .map(|id| (id, Kind::Grpc))
            .map_err(|status| format!("{status:?}")),
        ["stream", upstream, service, method, messages] => {
            let id = context
                .open_grpc_stream(upstream, service, method, vec![])
                .map_err(|status| format!("{status:?}"))?;
            let cancel = *messages == "!";
            if cancel {
                context.send_grpc_stream_message(id, Some(b"first"), false);
            } else {
                for message in messages.split(',').filter(|message| *message != "-") {
                    context.send_grpc_stream_message(id, Some(message.as_bytes()), false);
                }
                context.close_grpc_stream(id);
            }
            Ok((id, Kind::Stream { cancel }))
        }
        ["trap"] => panic!("as the request says"),
        _ => Err(format!("unknown command {words:?}")),
    }
}

struct Plugin {
    calls: Calls,
}

impl Plugin {
    fn publish(&self) {
        AT_START.with(|results| *results.borrow_mut() = self.calls.results.clone());
    }
}

impl Context for Plugin {
    fn on_http_call_response(&mut self, id: u32, headers: usize, size: usize, _: usize) {
        let mut calls = std::mem::take(&mut self.calls);
        calls.http_response(self, id, headers, size);
        self.calls = calls;
        self.publish();
    }

    fn on_grpc_call_response(&mut self, id: u32, status: u32, size: usize) {
        let mut calls = std::mem::take(&mut self.calls);
        if status == 0 {
            calls.grpc_message(self, id, size);
        } else {
            calls.grpc_close(self, id, status);
        }
        self.calls = calls;
        self.publish();
    }
}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        let commands = self.get_plugin_configuration().unwrap_or_default();
        let mut calls = Calls::default();
        calls.start(self, &String::from_utf8_lossy(&commands));
        self.calls = calls;
        self.publish();
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            calls: Calls::default(),
            commands: String::new(),
            then: String::new(),
            phase: String::new(),
            local: false,
            done: false,
        }))
    }
}

struct Stream {
    calls: Calls,
    commands: String,
    then: String,
    phase: String,
    local: bool,
    done: bool,
}

impl Stream {
    /// Starts the commands if this is their phase; returns what the stream does.
    fn at(&mut self, phase: &str) -> Action {
        if self.phase != phase || self.commands.is_empty() {
            return Action::Continue;
        }
        let commands = std::mem::take(&mut self.commands);
        let mut calls = std::mem::take(&mut self.calls);
        calls.start(self, &commands);
        self.calls = calls;
        if !self.calls.open.is_empty() {
            return if phase == "none" {
                Action::Continue
            } else {
                Action::Pause
            };
        }
        if self.finish() {
            Action::Continue
        } else {
            Action::Pause
        }
    }

    /// All answers are there; returns whether the stream goes on.
    fn finish(&mut self) -> bool {
        self.done = true;
        let text = self.calls.text();
        if self.local {
            self.send_http_response(418, vec![("x-callouts", &text)], Some(text.as_bytes()));
            return false;
        }
        match self.phase.as_str() {
            "none" => note(&format!("answers: {text}")),
            "response" => self.set_http_response_header("x-callouts", Some(&text)),
            "response-body" => self.set_http_response_body(0, usize::MAX >> 1, text.as_bytes()),
            _ => (),
        }
        true
    }

    fn resume(&mut self) {
        let then = std::mem::take(&mut self.then);
        if !then.is_empty() {
            let mut calls = std::mem::take(&mut self.calls);
            calls.start(self, &then);
            self.calls = calls;
            if !self.calls.open.is_empty() {
                return;
            }
        }
        if !self.finish() {
            return;
        }
        match self.phase.as_str() {
            "request" | "request-body" => self.resume_http_request(),
            "response" | "response-body" => self.resume_http_response(),
            _ => (),
        }
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, id: u32, headers: usize, size: usize, _: usize) {
        let mut calls = std::mem::take(&mut self.calls);
        let over = calls.http_response(self, id, headers, size);
        self.calls = calls;
        if over {
            self.resume();
        }
    }

    fn on_grpc_call_response(&mut self, id: u32, status: u32, size: usize) {
        let mut calls = std::mem::take(&mut self.calls);
        let over = if status == 0 {
            calls.grpc_message(self, id, size)
        } else {
            calls.grpc_close(self, id, status)
        };
        self.calls = calls;
        if over {
            self.resume();
        }
    }

    fn on_grpc_stream_initial_metadata(&mut self, id: u32, count: u32) {
        self.calls.add(
            id,
            &format!("initial {}", if count > 0 { "some" } else { "none" }),
        );
    }

    fn on_grpc_stream_message(&mut self, id: u32, size: usize) {
        let mut calls = std::mem::take(&mut self.calls);
        let over = calls.grpc_message(self, id, size);
        self.calls = calls;
        if over {
            self.resume();
        }
    }

    fn on_grpc_stream_trailing_metadata(&mut self, id: u32, _: u32) {
        let value = self
            .get_grpc_stream_trailing_metadata_value("x-trailing")
            .unwrap_or_default();
        self.calls
            .add(id, &format!("trailing {}", String::from_utf8_lossy(&value)));
    }

    fn on_grpc_stream_close(&mut self, id: u32, status: u32) {
        let mut calls = std::mem::take(&mut self.calls);
        let over = calls.grpc_close(self, id, status);
        self.calls = calls;
        if over {
            self.resume();
        }
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        self.commands = self.get_http_request_header("x-do").unwrap_or_default();
        self.then = self.get_http_request_header("x-then").unwrap_or_default();
        self.phase = self
            .get_http_request_header("x-phase")
            .unwrap_or_else(|| "request".to_string());
        self.local = self.get_http_request_header("x-local").is_some();
        if self.phase == "none" {
            self.at("none")
        } else {
            self.at("request")
        }
    }

    fn on_http_request_body(&mut self, _: usize, end: bool) -> Action {
        if self.phase == "request-body" && !self.done && !end {
            return Action::Pause;
        }
        self.at("request-body")
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        let start = AT_START.with(|results| results.borrow().join("; "));
        if !start.is_empty() {
            self.set_http_response_header("x-start", Some(&start));
        }
        if self.done {
            let text = self.calls.text();
            self.set_http_response_header("x-callouts", Some(&text));
        }
        if self.phase == "response-body" {
            self.set_http_response_header("content-length", None);
        }
        self.at("response")
    }

    fn on_http_response_body(&mut self, _: usize, end: bool) -> Action {
        if self.phase == "response-body" && !self.done && !end {
            return Action::Pause;
        }
        self.at("response-body")
    }
}
