//! Lets a request pass only if its `x-token` (or `token`) header equals the plugin configuration.
//!
//! Also tells the upstream, in `x-saw-authorization`, whether this plugin could see an `authorization` header.

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, Bytes, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin { token: Bytes::new() }) });
}}

struct Plugin {
    token: Bytes,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        self.token = self.get_plugin_configuration().unwrap_or_default();
        if self.token.is_empty() {
            error!("configuration must be the token, as plain text");
        }
        !self.token.is_empty()
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            token: self.token.clone(),
        }))
    }
}

struct Stream {
    token: Bytes,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let saw = self.get_http_request_header_bytes("authorization").is_some();
        self.set_http_request_header("x-saw-authorization", Some(if saw { "yes" } else { "no" }));

        let token = self
            .get_http_request_header_bytes("x-token")
            .or_else(|| self.get_http_request_header_bytes("token"));
        if token.as_ref() == Some(&self.token) {
            return Action::Continue;
        }
        self.send_http_response(
            403,
            vec![("Powered-By", "proxy-wasm")],
            Some(b"Access forbidden.\n"),
        );
        Action::Pause
    }
}
