//! From the bytes of a message to a question, or to the error that its sender is told. Pure; panics on no input.
//!
//! RFC 1035 for messages, RFC 6891 for EDNS. One question a message, as RFC 9619 says.

use super::name::Name;
use super::wire::{CLASS_IN, DNSSEC_OK, HEADER, PLAIN_SIZE, code, flag, kind, number};

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) header: Header,
    /// The question as it came: name, type, class. Replies repeat it byte for byte, upper case and lower case as well.
    pub(super) question: &'a [u8],
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) edns: Option<Edns>,
}

/// What of the header comes back in the reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) flags: u16,
}

/// What the OPT record says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edns {
    /// Bytes that the sender can take in a datagram.
    pub(super) payload: u16,
    pub(super) dnssec: bool,
}

/// Why a message gets no answer to its question.
#[derive(Debug)]
pub(super) enum Rejected<'a> {
    /// It is no question at all: silence, or two servers could keep each other busy for ever.
    Silent,
    /// A response code, with the question if it could be read.
    Code {
        header: Header,
        question: &'a [u8],
        code: u16,
        edns: Option<Edns>,
    },
}

impl<'a> Request<'a> {
    /// Reads a message.
    pub(super) fn parse(message: &'a [u8]) -> Result<Request<'a>, Rejected<'a>> {
        let (Some(id), Some(flags)) = (number(message, 0), number(message, 2)) else {
            return Err(Rejected::Silent);
        };
        if message.len() < HEADER || flags & flag::RESPONSE != 0 {
            return Err(Rejected::Silent);
        }
        let header = Header { id, flags };
        let reject = |code, question, edns| Rejected::Code {
            header,
            question,
            code,
            edns,
        };
        if flags & flag::OPCODE != 0 {
            return Err(reject(code::NOTIMP, &[], None));
        }
        let malformed = || reject(code::FORMERR, &[], None);
        if number(message, 4) != Some(1) {
            return Err(malformed());
        }
        let (name, end) = Name::read(message, HEADER).ok_or_else(malformed)?;
        let (Some(kind), Some(class)) = (number(message, end), number(message, end + 2)) else {
            return Err(malformed());
        };
        let question = &message[HEADER..end + 4];
        let options = options(message, end + 4).ok_or_else(|| reject(code::FORMERR, question, None))?;
        let edns = options.map(|(edns, _)| edns);
        let refusal = match (class, kind) {
            _ if options.is_some_and(|(_, version)| version > 0) => code::BADVERS,
            (_, kind::OPT) => code::FORMERR,
            (_, kind::MAILA | kind::MAILB) => code::NOTIMP,
            (_, kind::AXFR | kind::IXFR | kind::TSIG | kind::TKEY) => code::REFUSED,
            (CLASS_IN, _) => code::NOERROR,
            _ => code::REFUSED,
        };
        if refusal != code::NOERROR {
            return Err(reject(refusal, question, edns));
        }
        Ok(Request {
            header,
            question,
            name,
            kind,
            edns,
        })
    }

    /// The sender wants DNSSEC's records.
    pub(super) fn wants_dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }
}

/// The OPT record and its version among the records from `at` on; `None` for what is malformed, as two of them are.
fn options(message: &[u8], at: usize) -> Option<Option<(Edns, u8)>> {
    let records = |section| number(message, section).map(usize::from);
    let (before, additional) = (records(6)? + records(8)?, records(10)?);
    let mut place = at;
    let mut found = None;
    for index in 0..before + additional {
        let record = RecordHeader::read(message, place)?;
        place = record.end;
        if record.kind != kind::OPT {
            continue;
        }
        if found.is_some() || index < before || message.get(record.start) != Some(&0) {
            return None;
        }
        let [_, version, flags @ ..] = record.ttl.to_be_bytes();
        let edns = Edns {
            payload: record.class.max(PLAIN_SIZE),
            dnssec: u16::from_be_bytes(flags) & DNSSEC_OK != 0,
        };
        found = Some((edns, version));
    }
    Some(found)
}

/// Where a record of a message is, and its fixed fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    /// Where its owner's name begins.
    pub(super) start: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where its data begins.
    pub(super) data: usize,
    /// Where it ends.
    pub(super) end: usize,
}

impl RecordHeader {
    /// The record at `start`.
    pub(super) fn read(message: &[u8], start: usize) -> Option<RecordHeader> {
        let fields = skip_name(message, start)?;
        let data = fields + 10;
        let length = usize::from(number(message, fields + 8)?);
        let ttl = u32::from_be_bytes(*message.get(fields + 4..)?.first_chunk()?);
        (message.len() >= data + length).then_some(RecordHeader {
            start,
            kind: number(message, fields)?,
            class: number(message, fields + 2)?,
            ttl,
            data,
            end: data + length,
        })
    }
}

/// Where the name at `at` ends; one that is compressed ends with its pointer.
pub(super) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2).filter(|end| *end <= message.len()),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03Www\x07example\0\0\x01\0\x01";

    fn rejection(message: &[u8]) -> u16 {
        match Request::parse(message) {
            Err(Rejected::Code { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = QUESTION.to_vec();
        change(&mut message);
        message
    }

    fn with_opt(name: &[u8], version: u8, copies: u8) -> Vec<u8> {
        changed(|message| {
            message[11] = copies;
            for _ in 0..copies {
                message.extend_from_slice(name);
                message.extend_from_slice(&[0, 41, 0x10, 0, 0, version, 0x80, 0, 0, 0]);
            }
        })
    }

    #[test]
    fn questions_are_read() {
        let request = Request::parse(QUESTION).unwrap();
        assert_eq!((request.header.id, request.kind), (0x1234, kind::A));
        assert_eq!(request.question, &QUESTION[HEADER..]);
        assert_eq!(format!("{:?}", request.name), "www.example.");
        assert!(request.edns.is_none() && !request.wants_dnssec());
        let message = with_opt(b"\0", 0, 1);
        let edns = Request::parse(&message).unwrap().edns.unwrap();
        assert!(edns.payload == 4096 && edns.dnssec);
    }

    #[test]
    fn what_cannot_be_answered_is_told() {
        assert_eq!(rejection(&changed(|message| message[5] = 2)), code::FORMERR);
        assert_eq!(rejection(&changed(|message| message[5] = 0)), code::FORMERR);
        assert_eq!(
            rejection(&changed(|message| message[11] = 1)),
            code::FORMERR,
            "a record is missing"
        );
        assert_eq!(rejection(&changed(|message| message[12] = 0xc0)), code::FORMERR);
        assert_eq!(rejection(&changed(|message| message.truncate(27))), code::FORMERR);
        assert_eq!(
            rejection(&changed(|message| message[2] |= 0x20)),
            code::NOTIMP,
            "NOTIFY"
        );
        assert_eq!(
            rejection(&changed(|message| message[28] = 3)),
            code::REFUSED,
            "class CH"
        );
        assert_eq!(
            rejection(&changed(|message| message[28] = 255)),
            code::REFUSED,
            "class ANY"
        );
        assert_eq!(rejection(&changed(|message| message[26] = 252)), code::REFUSED, "AXFR");
        assert_eq!(rejection(&changed(|message| message[26] = 41)), code::FORMERR);
        assert_eq!(rejection(&with_opt(b"\0", 1, 1)), code::BADVERS);
        assert_eq!(rejection(&with_opt(b"\0", 0, 2)), code::FORMERR);
        assert_eq!(rejection(&with_opt(b"\x01a\0", 0, 1)), code::FORMERR);
        for silent in [b"".as_slice(), &QUESTION[..11], &changed(|message| message[2] |= 0x80)] {
            assert!(matches!(Request::parse(silent), Err(Rejected::Silent)), "{silent:?}");
        }
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_parser(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Request::parse(&message);
        }

        #[test]
        fn no_change_of_a_good_message_breaks_the_parser(at in 0usize..40, byte: u8, cut in 0usize..60) {
            let mut message = with_opt(b"\0", 0, 1);
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
            message.truncate(cut);
            if let Ok(request) = Request::parse(&message) {
                prop_assert!(request.name.as_bytes().len() + 4 == request.question.len());
            }
        }
    }
}
