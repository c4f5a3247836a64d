//! As much of HTTP/1.1 as the stand-in for the Messages API needs: requests with a body of a known length or in chunks,
//! answers in JSON or as a stream of server-sent events, connections that are kept open.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use serde_json::Value;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// `POST`, `HEAD` …
    pub(crate) method: String,
    /// The path with its query.
    pub(crate) path: String,
    /// Its headers, names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// The whole body; null where there was none.
    pub(crate) body: Value,
    /// When its last byte had been read.
    pub(crate) at: Instant,
}

/// Reads one request; none when the peer has closed the connection.
pub(crate) fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let body = if headers.contains_key("transfer-encoding") {
        read_chunks(reader)?
    } else {
        let length = headers.get("content-length").map_or(Ok(0), |length| length.parse());
        read_exactly(reader, length.map_err(std::io::Error::other)?)?
    };
    // What is not JSON is kept as text: a test may want to see it.
    let body = match serde_json::from_slice(&body) {
        Ok(json) => json,
        Err(_) if body.is_empty() => Value::Null,
        Err(_) => String::from_utf8_lossy(&body).into_owned().into(),
    };
    Ok(Some(Request { method, path, headers, body, at: Instant::now() }))
}

fn read_exactly(reader: &mut impl BufRead, length: usize) -> std::io::Result<Vec<u8>> {
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let length = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        body.extend(read_exactly(reader, length)?);
        reader.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Answers with a JSON body, or with its headers alone.
pub(crate) fn respond(out: &mut impl Write, status: &str, body: &Value, head: bool) -> std::io::Result<()> {
    respond_with(out, status, &[], body, head)
}

/// The same with further headers.
pub(crate) fn respond_with(
    out: &mut impl Write,
    status: &str,
    headers: &[(&'static str, String)],
    body: &Value,
    head: bool,
) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let body = if head { "" } else { &body };
    write!(out, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n")?;
    for (name, value) in headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    write!(out, "\r\n{body}")
}

/// Begins an answer that is a stream of events.
pub(crate) fn begin_events(out: &mut impl Write) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

/// Sends one event, named by its `type`.
pub(crate) fn send_event(out: &mut impl Write, event: &Value) -> std::io::Result<()> {
    let name = event["type"].as_str().unwrap_or_default();
    let text = format!("event: {name}\ndata: {event}\n\n");
    write!(out, "{:x}\r\n{text}\r\n", text.len())
}

/// Ends the stream; the connection stays open.
pub(crate) fn end_events(out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(b"0\r\n\r\n")
}
