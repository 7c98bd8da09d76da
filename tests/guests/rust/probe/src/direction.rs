//! The two directions of an HTTP stream and the ABI's ids for the parts of each.

use proxy_wasm::types::{BufferType, MapType};

#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    Request,
    Response,
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Direction::Request => "request",
            Direction::Response => "response",
        }
    }

    pub fn headers(self) -> MapType {
        match self {
            Direction::Request => MapType::HttpRequestHeaders,
            Direction::Response => MapType::HttpResponseHeaders,
        }
    }

    pub fn trailers(self) -> MapType {
        match self {
            Direction::Request => MapType::HttpRequestTrailers,
            Direction::Response => MapType::HttpResponseTrailers,
        }
    }

    pub fn body(self) -> BufferType {
        match self {
            Direction::Request => BufferType::HttpRequestBody,
            Direction::Response => BufferType::HttpResponseBody,
        }
    }

    pub fn headers_id(self) -> u32 {
        self.headers() as u32
    }

    pub fn trailers_id(self) -> u32 {
        self.trailers() as u32
    }

    pub fn body_id(self) -> u32 {
        self.body() as u32
    }

    /// The id of proxy_continue_stream and proxy_close_stream.
    pub fn stream_id(self) -> u32 {
        match self {
            Direction::Request => 0,
            Direction::Response => 1,
        }
    }
}
