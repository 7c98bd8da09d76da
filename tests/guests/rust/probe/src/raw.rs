//! Host functions by their bare ABI, for probes that report the exact status: the SDK's own wrappers panic on the
//! statuses they do not expect.

use std::ptr::null_mut;

mod host {
    #[link(wasm_import_module = "env")]
    extern "C" {
        pub fn proxy_log(level: u32, message: *const u8, size: usize) -> u32;
        pub fn proxy_get_header_map_size(map: u32, size: *mut usize) -> u32;
        pub fn proxy_get_header_map_value(
            map: u32,
            key: *const u8,
            key_size: usize,
            value: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_add_header_map_value(
            map: u32,
            key: *const u8,
            key_size: usize,
            value: *const u8,
            size: usize,
        ) -> u32;
        pub fn proxy_get_buffer_status(buffer: u32, size: *mut usize, flags: *mut u32) -> u32;
        pub fn proxy_get_buffer_bytes(
            buffer: u32,
            start: usize,
            max_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_set_buffer_bytes(
            buffer: u32,
            start: usize,
            size: usize,
            data: *const u8,
            data_size: usize,
        ) -> u32;
        pub fn proxy_get_property(
            path: *const u8,
            path_size: usize,
            value: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_send_local_response(
            status: u32,
            details: *const u8,
            details_size: usize,
            body: *const u8,
            body_size: usize,
            pairs: *const u8,
            pairs_size: usize,
            grpc_status: i32,
        ) -> u32;
        pub fn proxy_continue_stream(stream: u32) -> u32;
        pub fn proxy_close_stream(stream: u32) -> u32;
        pub fn proxy_set_effective_context(context: u32) -> u32;
        pub fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, metric: *mut u32) -> u32;
        pub fn proxy_increment_metric(metric: u32, delta: i64) -> u32;
        pub fn proxy_record_metric(metric: u32, value: u64) -> u32;
        pub fn proxy_get_metric(metric: u32, value: *mut u64) -> u32;
        pub fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            value: *mut *mut u8,
            size: *mut usize,
            cas: *mut u32,
        ) -> u32;
        pub fn proxy_resolve_shared_queue(
            vm_id: *const u8,
            vm_id_size: usize,
            name: *const u8,
            name_size: usize,
            queue: *mut u32,
        ) -> u32;
        pub fn proxy_http_call(
            upstream: *const u8,
            upstream_size: usize,
            pairs: *const u8,
            pairs_size: usize,
            body: *const u8,
            body_size: usize,
            trailers: *const u8,
            trailers_size: usize,
            timeout_ms: u32,
            call: *mut u32,
        ) -> u32;
        pub fn proxy_call_foreign_function(
            name: *const u8,
            name_size: usize,
            arguments: *const u8,
            arguments_size: usize,
            results: *mut *mut u8,
            results_size: *mut usize,
        ) -> u32;
    }
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
extern "C" {
    fn random_get(buffer: *mut u8, size: usize) -> u32;
}

/// What a call that returns bytes gave: the bytes, or the status that is not OK.
pub type Answer = Result<Vec<u8>, u32>;

fn answer(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Answer {
    let (mut data, mut size) = (null_mut(), 0);
    match call(&mut data, &mut size) {
        0 if data.is_null() => Ok(Vec::new()),
        // The host got this block from the guest's allocator, with exactly this size.
        0 => Ok(unsafe { Vec::from_raw_parts(data, size, size) }),
        status => Err(status),
    }
}

pub fn log(level: u32, message: &str) -> u32 {
    unsafe { host::proxy_log(level, message.as_ptr(), message.len()) }
}

pub fn header_map_size(map: u32) -> Result<usize, u32> {
    let mut size = 0;
    match unsafe { host::proxy_get_header_map_size(map, &mut size) } {
        0 => Ok(size),
        status => Err(status),
    }
}

pub fn header(map: u32, key: &str) -> Answer {
    answer(|data, size| unsafe { host::proxy_get_header_map_value(map, key.as_ptr(), key.len(), data, size) })
}

pub fn add_header(map: u32, key: &str, value: &str) -> u32 {
    unsafe { host::proxy_add_header_map_value(map, key.as_ptr(), key.len(), value.as_ptr(), value.len()) }
}

pub fn buffer_status(buffer: u32) -> Result<(usize, u32), u32> {
    let (mut size, mut flags) = (0, 0);
    match unsafe { host::proxy_get_buffer_status(buffer, &mut size, &mut flags) } {
        0 => Ok((size, flags)),
        status => Err(status),
    }
}

pub fn buffer(buffer: u32, start: usize, max_size: usize) -> Answer {
    answer(|data, size| unsafe { host::proxy_get_buffer_bytes(buffer, start, max_size, data, size) })
}

pub fn set_buffer(buffer: u32, start: usize, size: usize, value: &[u8]) -> u32 {
    unsafe { host::proxy_set_buffer_bytes(buffer, start, size, value.as_ptr(), value.len()) }
}

/// `path` is the ABI's: segments joined by NUL.
pub fn property(path: &str) -> Answer {
    answer(|data, size| unsafe { host::proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// A local response with details, which the SDK has no parameter for. `pairs` is a serialised header map.
pub fn local_response(status: u32, details: &str, body: &str, pairs: &[u8], grpc_status: i32) -> u32 {
    unsafe {
        host::proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            pairs.as_ptr(),
            pairs.len(),
            grpc_status,
        )
    }
}

pub fn continue_stream(stream: u32) -> u32 {
    unsafe { host::proxy_continue_stream(stream) }
}

pub fn close_stream(stream: u32) -> u32 {
    unsafe { host::proxy_close_stream(stream) }
}

pub fn set_effective_context(context: u32) -> u32 {
    unsafe { host::proxy_set_effective_context(context) }
}

pub fn define_metric(kind: u32, name: &str) -> Result<u32, u32> {
    let mut metric = 0;
    match unsafe { host::proxy_define_metric(kind, name.as_ptr(), name.len(), &mut metric) } {
        0 => Ok(metric),
        status => Err(status),
    }
}

pub fn increment_metric(metric: u32, delta: i64) -> u32 {
    unsafe { host::proxy_increment_metric(metric, delta) }
}

pub fn record_metric(metric: u32, value: u64) -> u32 {
    unsafe { host::proxy_record_metric(metric, value) }
}

pub fn metric(metric: u32) -> Result<u64, u32> {
    let mut value = 0;
    match unsafe { host::proxy_get_metric(metric, &mut value) } {
        0 => Ok(value),
        status => Err(status),
    }
}

pub fn shared_data(key: &str) -> Answer {
    let mut cas = 0;
    answer(|data, size| unsafe { host::proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &mut cas) })
}

pub fn resolve_queue(name: &str) -> u32 {
    let mut queue = 0;
    unsafe { host::proxy_resolve_shared_queue([].as_ptr(), 0, name.as_ptr(), name.len(), &mut queue) }
}

pub fn http_call(upstream: &str) -> u32 {
    let (none, mut call) = ([0u8; 0], 0);
    unsafe {
        host::proxy_http_call(
            upstream.as_ptr(),
            upstream.len(),
            none.as_ptr(),
            0,
            none.as_ptr(),
            0,
            none.as_ptr(),
            0,
            1000,
            &mut call,
        )
    }
}

pub fn foreign_function(name: &str, arguments: &[u8]) -> Answer {
    answer(|data, size| unsafe {
        host::proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            arguments.as_ptr(),
            arguments.len(),
            data,
            size,
        )
    })
}

/// Random bytes from WASI, or its errno.
pub fn random<const SIZE: usize>() -> Result<[u8; SIZE], u32> {
    let mut bytes = [0; SIZE];
    match unsafe { random_get(bytes.as_mut_ptr(), SIZE) } {
        0 => Ok(bytes),
        errno => Err(errno),
    }
}
