//! Adds one response header, named and valued by the plugin configuration: `{"header": "...", "value": "..."}`.
//!
//! Anything else in the configuration makes the plugin refuse to start.

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use serde_json::Value;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin::default()) });
}}

#[derive(Clone, Default)]
struct Plugin {
    header: String,
    value: String,
}

fn text(configuration: &Value, key: &str) -> Option<String> {
    Some(configuration.get(key)?.as_str()?.to_owned())
}

fn parse(configuration: &[u8]) -> Option<Plugin> {
    let json: Value = serde_json::from_slice(configuration).ok()?;
    Some(Plugin {
        header: text(&json, "header").filter(|name| !name.is_empty())?,
        value: text(&json, "value")?,
    })
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        let configuration = self.get_plugin_configuration().unwrap_or_default();
        match parse(&configuration) {
            Some(plugin) => {
                *self = plugin;
                true
            }
            None => {
                error!("configuration must be a JSON object with the strings \"header\" and \"value\"");
                false
            }
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream(self.clone())))
    }
}

struct Stream(Plugin);

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.add_http_response_header(&self.0.header, &self.0.value);
        Action::Continue
    }
}
