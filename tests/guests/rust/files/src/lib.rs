//! Does with the file system what the request's path says after its `/`, through `std::fs` alone, and sets the request
//! header `x-done`: the results, parted by `|`.
//!
//! Commands, separated by `;`: `read PATH`, `write PATH TEXT`, `append PATH TEXT`, `list PATH`, `mkdir PATH`,
//! `rename PATH PATH`, `remove PATH`, `rmdir PATH`, `size PATH`, `fill PATH BYTES`, `trap`. A result may be `error: KIND`.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use std::fs;
use std::io::{self, Write};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin) });
}}

struct Plugin;

impl Context for Plugin {}

impl RootContext for Plugin {
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Filter))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Filter;

impl Context for Filter {}

impl HttpContext for Filter {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let path = self.get_http_request_header(":path").unwrap_or_default();
        let results: Vec<String> = path.trim_start_matches('/').split(';').map(result).collect();
        self.set_http_request_header("x-done", Some(&results.join("|")));
        Action::Continue
    }
}

fn result(command: &str) -> String {
    run(command).unwrap_or_else(|error| format!("error: {:?}", error.kind()))
}

fn run(command: &str) -> io::Result<String> {
    let mut words = command.splitn(3, ' ');
    let what = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default();
    match what {
        "read" => fs::read_to_string(path),
        "write" => fs::write(path, rest).map(|()| "written".into()),
        "append" => fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(rest.as_bytes()))
            .map(|()| "appended".into()),
        "list" => {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let mark = if entry.file_type()?.is_dir() { "/" } else { "" };
                names.push(format!("{}{mark}", entry.file_name().to_string_lossy()));
            }
            names.sort();
            Ok(names.join(","))
        }
        "mkdir" => fs::create_dir_all(path).map(|()| "made".into()),
        "rename" => fs::rename(path, rest).map(|()| "renamed".into()),
        "remove" => fs::remove_file(path).map(|()| "removed".into()),
        "rmdir" => fs::remove_dir(path).map(|()| "removed".into()),
        "size" => fs::metadata(path).map(|facts| facts.len().to_string()),
        "fill" => fs::write(path, vec![b'x'; rest.parse().unwrap_or(0)]).map(|()| "filled".into()),
        "trap" => panic!("as asked"),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
