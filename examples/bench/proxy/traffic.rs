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
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            // Stopped and continued, by whoever wants the machine quiet.
            Err(rustix::io::Errno::INTR) => continue,
            waited => waited?,
        };
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

/// What `count` connections cost, one after the other; each has one request and is reset.
#[derive(Default)]
pub struct Connections {
    /// Microseconds of each connect(2).
    pub connects: Vec<f64>,
    /// Microseconds until the reply was there.
    pub requests: Vec<f64>,
    /// Processor time of each, client and server and what the kernel did for them, in microseconds.
    pub cpu: f64,
}

/// Makes connections.
pub fn connections(address: SocketAddr, count: usize) -> Result<Connections> {
    let mut made = Connections::default();
    let mut before = Duration::ZERO;
    for number in 0..WARM_UP + count {
        if number == WARM_UP {
            before = processor_time()?;
        }
        let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        sockopt::set_tcp_nodelay(&client, true)?;
        let began = Instant::now();
        connect(client.as_fd(), &address).with_context(|| format!("connect to {address}"))?;
        let connected = began.elapsed();
        let mut stream = TcpStream::from(client);
        stream.write_all(REQUEST)?;
        stream.read_exact(&mut [0; REPLY.len()])?;
        let replied = began.elapsed();
        drop(stream);
        if number >= WARM_UP {
            made.connects.push(connected.as_secs_f64() * 1e6);
            made.requests.push(replied.as_secs_f64() * 1e6);
        }
    }
    made.cpu = (processor_time()? - before).as_secs_f64() * 1e6 / count as f64;
    Ok(made)
}

/// What all threads of this process have used: clients and servers are among them.
fn processor_time() -> Result<Duration> {
    // SAFETY: all zeros are a value of the struct, and the kernel fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) != 0 {
            return Err(std::io::Error::last_os_error()).context("getrusage");
        }
        usage
    };
    let of = |time: libc::timeval| Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec).unsigned_abs());
    Ok(of(usage.ru_utime) + of(usage.ru_stime))
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
