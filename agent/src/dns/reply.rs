//! Writes a reply into a buffer that is used again and again: no allocation for an answer.
//!
//! A reply never exceeds its limit. Answers that do not fit are left out and the reply is marked as truncated; records
//! that are merely useful are left out in silence (RFC 2181, 9). The OPT record has its place reserved.

use super::request::{Edns, Header, Request, skip_name};
use super::wire::{CLASS_IN, DNSSEC_OK, HEADER, OPT_LENGTH, PLAIN_SIZE, SAFE_SIZE, flag, kind};

/// The largest datagram sent, whatever the client says it can take.
const MAX_DATAGRAM: u16 = 4096;
/// Names further back cannot be pointed to (RFC 1035, 4.1.4).
const MAX_POINTER: usize = 0x3fff;

/// Where the question's name is in every reply.
pub(super) const QUESTION: Owner<'static> = Owner::At(HEADER);

/// How the client asked; decides how much it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// Bytes that a reply may have.
    pub(super) fn limit(self, edns: Option<Edns>) -> usize {
        match (self, edns) {
            (Transport::Tcp, _) => u16::MAX.into(),
            (Transport::Udp, None) => PLAIN_SIZE.into(),
            (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_SIZE, MAX_DATAGRAM).into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner<'a> {
    /// The name that is at this place of the reply already: pointed to, or repeated where no pointer reaches.
    At(usize),
    /// A name in wire form, in two parts.
    Name(&'a [u8], &'a [u8]),
}

/// A reply being written.
pub(super) struct Reply<'b> {
    out: &'b mut Vec<u8>,
    limit: usize,
    flags: u16,
    counts: [u16; 3],
    edns: Option<Edns>,
}

impl<'b> Reply<'b> {
    /// Begins the reply to a question; what was in `out` goes.
    pub(super) fn new(out: &'b mut Vec<u8>, request: &Request<'_>, transport: Transport) -> Reply<'b> {
        let limit = transport.limit(request.edns);
        Reply::start(out, request.header, request.question, request.edns, limit)
    }

    /// The whole reply to what is not answered.
    pub(super) fn reject(out: &mut Vec<u8>, header: Header, question: &[u8], code: u16, edns: Option<Edns>) {
        Reply::start(out, header, question, edns, PLAIN_SIZE.into()).finish(code, false);
    }

    fn start(out: &'b mut Vec<u8>, header: Header, question: &[u8], edns: Option<Edns>, limit: usize) -> Reply<'b> {
        out.clear();
        out.extend_from_slice(&header.id.to_be_bytes());
        out.extend_from_slice(&[0; HEADER - 2]);
        out.extend_from_slice(question);
        out[5] = u8::from(!question.is_empty());
        let kept = flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        Reply {
            out,
            limit: limit - if edns.is_some() { OPT_LENGTH } else { 0 },
            flags: flag::RESPONSE | flag::RECURSION_AVAILABLE | header.flags & kept,
            counts: [0; 3],
            edns,
        }
    }

    /// Bytes written so far: where the next record begins.
    pub(super) fn position(&self) -> usize {
        self.out.len()
    }

    /// Records in the answer section so far.
    pub(super) fn answers(&self) -> u16 {
        self.counts[0]
    }

    /// Whether an answer was left out for lack of space.
    pub(super) fn is_truncated(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }

    /// Appends a record; `data` is written part by part. Tells where its data is, or `None` when it did not fit.
    pub(super) fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        kind: u16,
        ttl: u32,
        data: &[&[u8]],
    ) -> Option<usize> {
        let begin = self.out.len();
        match owner {
            Owner::At(place) if place <= MAX_POINTER => {
                // Two upper bits mark a pointer; the place has 14.
                self.out.extend_from_slice(&(0xc000 | place as u16).to_be_bytes());
            }
            Owner::At(place) => match skip_name(self.out, place) {
                Some(end) => self.out.extend_from_within(place..end),
                None => return self.left_out(section, begin),
            },
            Owner::Name(first, second) => {
                self.out.extend_from_slice(first);
                self.out.extend_from_slice(second);
            }
        }
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let length: usize = data.iter().map(|part| part.len()).sum();
        let Ok(length) = u16::try_from(length) else {
            return self.left_out(section, begin);
        };
        self.out.extend_from_slice(&length.to_be_bytes());
        let place = self.out.len();
        for part in data {
            self.out.extend_from_slice(part);
        }
        if self.out.len() > self.limit {
            return self.left_out(section, begin);
        }
        self.counts[section as usize] += 1;
        Some(place)
    }

    fn left_out(&mut self, section: Section, begin: usize) -> Option<usize> {
        self.out.truncate(begin);
        if section == Section::Answer {
            self.flags |= flag::TRUNCATED;
        }
        None
    }

    /// Completes the reply.
    pub(super) fn finish(mut self, code: u16, authoritative: bool) {
        if authoritative {
            self.flags |= flag::AUTHORITATIVE;
        }
        self.flags |= code & flag::CODE;
        if let Some(edns) = self.edns {
            append_opt(self.out, code, edns.dnssec);
            self.counts[2] += 1;
        }
        self.out[2..4].copy_from_slice(&self.flags.to_be_bytes());
        for (count, place) in self.counts.iter().zip([6, 8, 10]) {
            self.out[place..place + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// Appends an OPT record; the additional records are to be counted by the caller.
pub(super) fn append_opt(out: &mut Vec<u8>, response_code: u16, dnssec: bool) {
    let flags = if dnssec { DNSSEC_OK } else { 0 };
    // The lower four bits are in the header.
    let [upper, _] = (response_code << 4).to_be_bytes();
    out.push(0);
    out.extend_from_slice(&kind::OPT.to_be_bytes());
    out.extend_from_slice(&SAFE_SIZE.to_be_bytes());
    out.extend_from_slice(&[upper, 0]);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}
