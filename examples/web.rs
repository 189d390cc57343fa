//! The demo's workload: an HTTP server that answers with its pod's name.
//!
//! One thread per connection, one request per connection. As its container's first process it must ask for SIGTERM to end by it
//! (pid_namespaces(7)).

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

/// Largest request line that is read, in bytes.
const MAX_LINE: u64 = 4096;

fn answer(stream: TcpStream, name: &str, greeting: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(std::io::Read::take(&stream, MAX_LINE));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = if request.starts_with("GET /healthz ") {
        "ok\n".to_owned()
    } else {
        format!("{greeting} {name}\n")
    };
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn serve() -> std::io::Result<()> {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (name, greeting) = (variable("POD_NAME", "nobody"), variable("GREETING", "hello from"));
    let listener = TcpListener::bind("0.0.0.0:8080")?;
    println!("{name} listens on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let (name, greeting) = (name.clone(), greeting.clone());
        std::thread::spawn(move || {
            if let Err(error) = stream.and_then(|stream| answer(stream, &name, &greeting)) {
                eprintln!("connection: {error}");
            }
        });
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let server = std::thread::spawn(serve);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let asked = runtime.block_on(async {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
            .recv()
            .await;
        std::io::Result::Ok(())
    });
    if server.is_finished() {
        eprintln!("the server ended by itself");
    }
    asked
}
