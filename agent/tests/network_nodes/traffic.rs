//! Traffic of tests: an echo server, connections, packets that may not be fragmented.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};

use crate::support::PATIENCE;

/// RFC 862 over TCP and UDP, until dropped; a TCP client is told first from where it seems to come.
pub struct Echo {
    tcp: TcpListener,
    udp: UdpSocket,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn start(address: SocketAddr) -> Echo {
        let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        let (listener, socket) = (tcp.try_clone().unwrap(), udp.try_clone().unwrap());
        let streams = thread::spawn(move || {
            while let Ok((mut stream, client)) = listener.accept() {
                thread::spawn(move || {
                    let _ = writeln!(stream, "{}", client.ip());
                    let mut copy = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut stream, &mut copy);
                });
            }
        });
        let datagrams = thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            // A socket that is shut down gives empty datagrams.
            while let Ok((length @ 1.., client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], client);
            }
        });
        Echo {
            tcp,
            udp,
            threads: vec![streams, datagrams],
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.tcp, rustix::net::Shutdown::Both);
        // Fails because it is not connected, but wakes the reader.
        let _ = rustix::net::shutdown(&self.udp, rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An open connection to an echo server.
pub struct Stream {
    stream: TcpStream,
    /// From where it comes in the eyes of the server.
    pub seen: IpAddr,
}

impl Stream {
    pub fn open(to: IpAddr) -> std::io::Result<Stream> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 7), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let seen = String::from_utf8(line).unwrap().trim().parse().unwrap();
        Ok(Stream { stream, seen })
    }

    /// Sends and reads back half a megabyte.
    pub fn exchange(&mut self) {
        let data: Vec<u8> = (0..1u32 << 19).map(|place| (place % 251) as u8).collect();
        let mut back = vec![0; data.len()];
        thread::scope(|scope| {
            let mut half = self.stream.try_clone().unwrap();
            let data = &data;
            scope.spawn(move || half.write_all(data).unwrap());
            self.stream.read_exact(&mut back).unwrap();
        });
        assert!(back == data, "what came back is not what was sent");
    }
}

/// The longest datagram that may not be fragmented and comes back, in bytes of its whole IP packet.
pub fn packet(to: IpAddr, size: usize) -> std::io::Result<usize> {
    let (any, headers): (IpAddr, usize) = match to {
        IpAddr::V4(_) => ([0; 4].into(), 28),
        IpAddr::V6(_) => ([0; 16].into(), 48),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    never_fragment(&socket, to.is_ipv4());
    socket.send_to(&vec![1; size - headers], SocketAddr::new(to, 7))?;
    let (length, _) = socket.recv_from(&mut vec![0; 65536])?;
    Ok(length + headers)
}

fn never_fragment(socket: &UdpSocket, ipv4: bool) {
    use std::os::fd::AsRawFd as _;
    let (level, name) = if ipv4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let value = libc::IP_PMTUDISC_DO;
    // SAFETY: the option's value is an int that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value).try_into().unwrap(),
        )
    };
    assert_eq!(result, 0);
}
