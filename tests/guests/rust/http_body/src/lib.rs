//! Withholds a body until all of it has come; one that contains "secret" is replaced by a short notice.
//!
//! Looks at responses, or at requests when the plugin configuration is `request`.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, Bytes, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin { direction: Direction::Response }) });
}}

const SECRET: &[u8] = b"secret";
const WHOLE_BODY: usize = i32::MAX as usize;

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Request,
    Response,
}

struct Plugin {
    direction: Direction,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        self.direction = match self.get_plugin_configuration().unwrap_or_default().as_slice() {
            b"" | b"response" => Direction::Response,
            b"request" => Direction::Request,
            other => {
                log::error!(
                    "configuration must be empty, request or response, not {:?}",
                    String::from_utf8_lossy(other)
                );
                return false;
            }
        };
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            direction: self.direction,
        }))
    }
}

struct Stream {
    direction: Direction,
}

/// The text that takes the body's place, or None when the body may pass.
fn notice(body: Option<Bytes>) -> Option<String> {
    let body = body?;
    // The first byte is compared by itself because a body may have megabytes and a call its time limit.
    let secret = body
        .windows(SECRET.len())
        .any(|window| window[0] == SECRET[0] && window == SECRET);
    secret.then(|| format!("Original message body ({} bytes) redacted.\n", body.len()))
}

impl Stream {
    fn redact_request(&self, size: usize) {
        if let Some(notice) = notice(self.get_http_request_body(0, size)) {
            self.set_http_request_body(0, size, notice.as_bytes());
        }
    }

    fn redact_response(&self, size: usize) {
        if let Some(notice) = notice(self.get_http_response_body(0, size)) {
            self.set_http_response_body(0, size, notice.as_bytes());
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.direction == Direction::Request {
            // The length may change, and by the time the body is seen the headers have gone.
            self.remove_http_request_header("content-length");
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, body_size: usize, end_of_stream: bool) -> Action {
        if self.direction != Direction::Request {
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.redact_request(body_size);
        Action::Continue
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        // A body with trailers has no chunk that ends the stream; what was withheld is still readable here.
        if self.direction == Direction::Request {
            self.redact_request(WHOLE_BODY);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if self.direction == Direction::Response {
            self.remove_http_response_header("content-length");
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, body_size: usize, end_of_stream: bool) -> Action {
        if self.direction != Direction::Response {
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.redact_response(body_size);
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        // A body with trailers has no chunk that ends the stream; what was withheld is still readable here.
        if self.direction == Direction::Response {
            self.redact_response(WHOLE_BODY);
        }
        Action::Continue
    }
}
