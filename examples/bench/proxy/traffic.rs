//! Clients that take the time of connect(2) and of round trips, and the server they talk to.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};

use super::hosts::within;

/// Connections that are not counted: caches are cold.
const WARM_UP: usize = 20;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const REPLY: [u8; 64] = *b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const LISTENER: u64 = u64::MAX;

/// Starts a server in a namespace; it ends with this process.
pub fn serve(namespace: &Path, port: u16) -> Result<()> {
    let address: SocketAddr = ([0, 0, 0, 0], port).into();
    let listener = within(namespace, None, || TcpListener::bind(address).context("listen"))?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || answer(&listener).inspect_err(|error| eprintln!("bench: server: {error}")));
    Ok(())
}

fn answer(listener: &TcpListener) -> std::io::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &poll,
        listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let mut next = 0;
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    epoll::add(&poll, &stream, epoll::EventData::new_u64(next), epoll::EventFlags::IN)?;
                    streams.insert(next, stream);
                    next += 1;
                }
                continue;
            }
            let mut buffer = [0; 512];
            let Some(stream) = streams.get_mut(&key) else { continue };
            let open = stream.read(&mut buffer).is_ok_and(|length| length > 0) && stream.write_all(&REPLY).is_ok();
            if !open {
                streams.remove(&key);
            }
        }
    }
}

/// Microseconds of each of `count` connect(2) calls, one after the other; connections are reset at once.
pub fn connects(address: SocketAddr, count: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count);
    for number in 0..WARM_UP + count {
        let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        let began = Instant::now();
        connect(client.as_fd(), &address).with_context(|| format!("connect to {address}"))?;
        let took = began.elapsed();
        if number >= WARM_UP {
            times.push(took.as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}

/// Microseconds of each of `count` requests with their replies on one connection.
pub fn round_trips(address: SocketAddr, count: usize) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(count);
    for number in 0..WARM_UP + count {
        let mut reply = [0; REPLY.len()];
        let began = Instant::now();
        stream.write_all(REQUEST)?;
        stream.read_exact(&mut reply)?;
        if number >= WARM_UP {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}
