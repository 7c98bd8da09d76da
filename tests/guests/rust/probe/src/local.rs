//! Probes that answer, reset or break the stream.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::GrpcStatusCode;

use crate::raw;

/// Serialised pairs of one header, `x-local: yes`.
const PAIRS: &[u8] = b"\x01\0\0\0\x07\0\0\0\x03\0\0\0x-local\0yes\0";

const NO_GRPC_STATUS: i32 = -1;

/// Runs the probe `what` in the request headers callback; true if it ended the stream.
pub fn probe(what: &str) -> bool {
    match what {
        "local" => respond(418, "local body\n"),
        "local-empty" => respond(204, ""),
        "local-grpc" => {
            let metadata = vec![("x-local", b"yes".as_slice())];
            hostcalls::send_grpc_response(GrpcStatusCode::PermissionDenied, Some("not for you"), metadata)
                .unwrap();
        }
        "local-twice" => {
            respond(418, "first\n");
            respond(419, "second\n");
        }
        "request-close" => _ = raw::close_stream(0),
        "panic" => panic!("asked to panic"),
        "exit" => std::process::exit(3),
        "sleep" => {
            std::thread::sleep(Duration::from_millis(1));
            return false;
        }
        _ => return false,
    }
    true
}

pub fn respond(status: u32, body: &str) {
    let result = raw::local_response(status, "probe local response", body, PAIRS, NO_GRPC_STATUS);
    assert_eq!(result, 0, "proxy_send_local_response");
}
