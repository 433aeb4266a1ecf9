//! A web server for guests: a few documents, and a count of how often each was asked for.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Serves one document until the program ends.
#[derive(Debug)]
pub struct Server {
    port: u16,
    path: &'static str,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// Serves `document` at `path` (without a slash) on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub fn of(path: &'static str, document: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for guests")?;
        let port = listener.local_addr()?.port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // Ends with the program; one request at a time is all a guest needs.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                // A guest that hangs up loses its answer and asks again.
                let _ = answer(&stream, path, &document);
            }
        });
        Ok(Self { port, path, asked })
    }

    /// Where a guest on user networking finds the document.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://10.0.2.2:{}/{}", self.port, self.path)
    }

    /// How many requests came.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(mut stream: &TcpStream, path: &str, document: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for header in lines {
        if header?.is_empty() {
            break;
        }
    }
    let wanted = request.split(' ').nth(1).and_then(|target| target.split('?').next());
    let (status, body) = match wanted.and_then(|target| target.strip_prefix('/')) {
        Some(name) if name == path => ("200 OK", document),
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn get(server: &Server, target: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn the_document_is_served_and_counted_and_nothing_else_is() {
        let server = Server::of("machine.yaml", "version: v1alpha1\n".to_owned()).unwrap();
        assert!(get(&server, "/machine.yaml?uuid=x").ends_with("\r\n\r\nversion: v1alpha1\n"));
        assert!(get(&server, "/other").starts_with("HTTP/1.1 404"));
        assert_eq!(server.asked(), 2);
        assert!(server.url().starts_with("http://10.0.2.2:"));
    }
}
