//! As much of D-Bus as it takes to ask systemd for a scope: one connection, calls in turn, the signal that a job ended.
//! D-Bus Specification, "Message Protocol" and "Authentication Protocol" (EXTERNAL, credentials from the socket).

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::wire::{Body, Values};

/// Nothing that systemd does for us takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST_MESSAGE: usize = 128 << 20;

const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Where a service manager listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// systemd's own socket: no bus in between.
    Private(PathBuf),
    /// A message bus.
    Bus(PathBuf),
    /// A message bus in the abstract name space.
    Abstract(String),
}

impl Address {
    /// The first transport of an address list that can be used. D-Bus Specification, "Server Addresses".
    pub fn parse(list: &str) -> Option<Address> {
        list.split(';').find_map(|address| {
            let options = address.strip_prefix("unix:")?;
            options.split(',').find_map(|option| match option.split_once('=')? {
                ("path", path) => Some(Address::Bus(path.into())),
                ("abstract", name) => Some(Address::Abstract(name.into())),
                _ => None,
            })
        })
    }
}

/// A message that came in.
#[derive(Debug, Default)]
struct Message {
    kind: u8,
    member: String,
    reply_to: u32,
    body: Vec<u8>,
}

/// What a method answered, or how it failed.
pub(super) type Answer = Result<Vec<u8>, Failure>;

/// A failed call.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection.
    Io(io::Error),
    /// The method, in words.
    Refused(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Failure::Io(error) => write!(out, "{error}"),
            Failure::Refused(text) => out.write_str(text),
        }
    }
}

/// A connection to a service manager.
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    /// Signals that came before somebody waited for them.
    signals: Vec<Message>,
}

const SERVICE: &str = "org.freedesktop.systemd1";

impl Connection {
    /// Connect and authenticate.
    pub fn open(address: &Address) -> Result<Connection, Failure> {
        let stream = match address {
            Address::Private(path) | Address::Bus(path) => UnixStream::connect(path)?,
            Address::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            stream,
            serial: 0,
            signals: Vec::new(),
        };
        connection.authenticate()?;
        if !matches!(address, Address::Private(_)) {
            connection.call(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "Hello",
                "",
                Body::default(),
            )?;
        }
        Ok(connection)
    }

    /// The other side knows who we are from the socket.
    fn authenticate(&mut self) -> Result<(), Failure> {
        self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
            if !line.ends_with(b"\r\n") {
                continue;
            }
            match &line[..] {
                accepted if accepted.starts_with(b"OK") => return Ok(()),
                b"DATA\r\n" => line.clear(),
                other => return Err(Failure::Refused(String::from_utf8_lossy(other).trim().to_owned())),
            }
        }
    }

    /// Call a method of systemd's manager.
    pub fn manager(&mut self, member: &str, signature: &str, body: Body) -> Answer {
        let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        self.call(SERVICE, path, interface, member, signature, body)
    }

    /// A property of systemd's manager that is a string.
    pub fn manager_text(&mut self, property: &str) -> Result<String, Failure> {
        let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.DBus.Properties");
        let mut body = Body::default();
        body.string("org.freedesktop.systemd1.Manager").string(property);
        let answer = self.call(SERVICE, path, interface, "Get", "ss", body)?;
        let mut values = Values { bytes: &answer, at: 0 };
        let text = values
            .signature()
            .filter(|signature| *signature == b"s")
            .and_then(|_| values.string());
        text.ok_or_else(|| Failure::Refused(format!("the property {property} is no text")))
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        signature: &str,
        body: Body,
    ) -> Answer {
        self.serial += 1;
        let serial = self.serial;
        let mut message = Body::default();
        message
            .byte(b'l')
            .byte(CALL)
            .byte(0)
            .byte(1)
            .u32(body.bytes.len() as u32)
            .u32(serial);
        message.array(8, |fields| {
            let texts = [
                (PATH, "o", path),
                (INTERFACE, "s", interface),
                (MEMBER, "s", member),
                (DESTINATION, "s", destination),
            ];
            for (field, kind, text) in texts {
                fields.structure().byte(field).signature(kind).string(text);
            }
            if !signature.is_empty() {
                fields.structure().byte(SIGNATURE).signature("g").signature(signature);
            }
        });
        message.structure();
        message.bytes.extend(&body.bytes);
        self.stream.write_all(&message.bytes)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                RETURN if message.reply_to == serial => return Ok(message.body),
                ERROR if message.reply_to == serial => {
                    let text = Values {
                        bytes: &message.body,
                        at: 0,
                    }
                    .string();
                    return Err(Failure::Refused(text.unwrap_or_else(|| format!("{member} failed"))));
                }
                SIGNAL => self.signals.push(message),
                _ => (),
            }
        }
    }

    /// Wait until the job on `unit` is done; its result.
    pub fn job_result(&mut self, unit: &str) -> Result<String, Failure> {
        let result = |message: &Message| {
            let mut values = Values {
                bytes: &message.body,
                at: 0,
            };
            if message.member != "JobRemoved" {
                return None;
            }
            let (_id, _path) = (values.u32()?, values.string()?);
            (values.string()? == unit).then(|| values.string())?
        };
        if let Some(result) = self.signals.iter().find_map(result) {
            return Ok(result);
        }
        loop {
            let message = self.receive()?;
            if let Some(result) = result(&message) {
                return Ok(result);
            }
        }
    }

    fn receive(&mut self) -> Result<Message, Failure> {
        let wrong = || Failure::Io(io::Error::new(io::ErrorKind::InvalidData, "not a D-Bus message"));
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed)?;
        let mut start = Values { bytes: &fixed, at: 0 };
        if start.byte() != Some(b'l') {
            return Err(wrong());
        }
        let kind = start.byte().unwrap_or(0);
        start.at = 4;
        let body_length = start.u32().unwrap_or(0) as usize;
        start.at = 12;
        let fields_length = start.u32().unwrap_or(0) as usize;
        if fields_length + body_length > LARGEST_MESSAGE {
            return Err(wrong());
        }
        let padded = (16 + fields_length).next_multiple_of(8) - 16;
        let mut rest = vec![0; padded + body_length];
        self.stream.read_exact(&mut rest)?;
        let body = rest.split_off(padded);
        let mut message = Message {
            kind,
            body,
            ..Message::default()
        };
        fields(&rest[..fields_length], &mut message).ok_or_else(wrong)?;
        Ok(message)
    }
}

/// The header fields that matter. They begin at offset 16, so alignment is that of the slice.
fn fields(bytes: &[u8], message: &mut Message) -> Option<()> {
    let mut values = Values { bytes, at: 0 };
    while values.at < bytes.len() {
        values.align(8);
        let field = values.byte()?;
        match values.signature()? {
            b"s" | b"o" => {
                let text = values.string()?;
                if field == MEMBER {
                    message.member = text;
                }
            }
            b"u" => {
                let number = values.u32()?;
                if field == REPLY_SERIAL {
                    message.reply_to = number;
                }
            }
            b"g" => drop(values.signature()?),
            _ => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_lists() {
        assert_eq!(
            Address::parse("tcp:host=x;unix:path=/run/bus,guid=1"),
            Some(Address::Bus("/run/bus".into()))
        );
        assert_eq!(
            Address::parse("unix:abstract=/tmp/x"),
            Some(Address::Abstract("/tmp/x".into()))
        );
        assert_eq!(Address::parse("tcp:host=x"), None);
    }

    #[test]
    fn broken_messages_are_no_panic() {
        let mut message = Message::default();
        assert!(fields(&[3, 1, b's'], &mut message).is_none());
        assert!(fields(&[3, 1, b's', 0, 255, 255, 255, 255], &mut message).is_none());
        assert!(
            Values {
                bytes: &[9, 0, 0, 0],
                at: 0
            }
            .string()
            .is_none()
        );
    }
}
