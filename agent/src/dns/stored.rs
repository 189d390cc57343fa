//! A resolver's reply as it is kept: checked once, then served by copying it and setting id, name and lifetimes.
//!
//! The question's name is where it was, and as long as it was, so the pointers of compressed names stay right whatever
//! its upper case is. The OPT record belongs to one hop and is taken off (RFC 6891, 6.2.6). RFC 2308 for how long an
//! answer of nothing holds, RFC 9520 for failures.

use std::time::{Duration, Instant};

use super::reply::{Owner, Reply, Section, Transport, append_opt};
use super::request::{RecordHeader, Request, skip_name};
use super::wire::{CLASS_IN, HEADER, OPT_LENGTH, code, flag, kind, number};

/// The longest that an answer is kept: what a resolver corrects is then wrong here no longer than this.
const MAX_LIFETIME: u32 = 300;
/// The longest that "there is none" is kept.
const MAX_NEGATIVE: u32 = 30;
/// How long a failure is kept, so that a broken name does not cost a lookup each time.
const FAILURE: u32 = 2;
/// How long a client may keep an answer that is past its time (RFC 8767, 4).
const STALE_TTL: u32 = 30;
/// Pointers followed in one name.
const MAX_JUMPS: usize = 64;

/// A reply that is kept.
#[derive(Debug)]
pub(super) struct Stored {
    message: Box<[u8]>,
    /// Where each record's lifetime is.
    ttls: Box<[u16]>,
    born: Instant,
    lifetime: u32,
}

impl Stored {
    /// Checks and keeps a reply; `None` when it is malformed.
    pub(super) fn new(mut message: Vec<u8>, born: Instant) -> Option<Stored> {
        let mut place = question_end(&message)?;
        let counts = [6, 8, 10].map(|place| number(&message, place).unwrap_or_default());
        let (mut ttls, mut lifetime, mut is_negative) = (Vec::new(), MAX_LIFETIME, counts[0] == 0);
        let mut has_soa = false;
        let mut kept = [0u16; 3];
        'sections: for section in 0..counts.len() {
            for _ in 0..counts[section] {
                let record = RecordHeader::read(&message, place)?;
                if record.kind == kind::OPT {
                    // What comes after it, hardly ever anything, may point behind it: left out.
                    break 'sections;
                }
                place = record.end;
                kept[section] += 1;
                ttls.push(u16::try_from(record.data - 6).ok()?);
                match (section, record.kind) {
                    (0, _) => lifetime = lifetime.min(record.ttl),
                    (1, kind::SOA) => {
                        let minimum = message.get(record.end - 4..record.end)?.first_chunk()?;
                        lifetime = lifetime.min(record.ttl).min(u32::from_be_bytes(*minimum));
                        has_soa = true;
                    }
                    _ => {}
                }
            }
        }
        message.truncate(place);
        for (count, place) in kept.iter().zip([6, 8, 10]) {
            message[place..place + 2].copy_from_slice(&count.to_be_bytes());
        }
        let flags = number(&message, 2)?;
        is_negative |= flags & flag::CODE == code::NXDOMAIN || has_soa;
        let lifetime = match flags & flag::CODE {
            _ if flags & flag::TRUNCATED != 0 => 0,
            code::NOERROR | code::NXDOMAIN if !is_negative => lifetime,
            code::NOERROR | code::NXDOMAIN if has_soa => lifetime.min(MAX_NEGATIVE),
            code::SERVFAIL => FAILURE,
            _ => 0,
        };
        Some(Stored {
            message: message.into(),
            ttls: ttls.into(),
            born,
            lifetime,
        })
    }

    /// What is kept when no resolver answers: a failure.
    pub(super) fn failure(question: &[u8], born: Instant) -> Stored {
        let mut message = vec![0; HEADER];
        message[2..4].copy_from_slice(&(flag::RESPONSE | code::SERVFAIL).to_be_bytes());
        message[5] = 1;
        message.extend_from_slice(question);
        Stored {
            message: message.into(),
            ttls: Box::default(),
            born,
            lifetime: FAILURE,
        }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Stored>() + self.message.len() + 2 * self.ttls.len()
    }

    /// How long it is good for from its birth on. Zero: for those only who asked.
    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime.into())
    }

    /// How long it has been good no more.
    pub(super) fn staleness(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born + self.lifetime())
    }

    pub(super) fn code(&self) -> u16 {
        self.flags() & flag::CODE
    }

    fn flags(&self) -> u16 {
        number(&self.message, 2).unwrap_or_default()
    }

    /// Writes the reply to a question for the same name and type.
    pub(super) fn reply(&self, request: &Request<'_>, transport: Transport, out: &mut Vec<u8>, now: Instant) {
        let opt = if request.edns.is_some() { OPT_LENGTH } else { 0 };
        let kept = self.fit(transport.limit(request.edns) - opt);
        out.clear();
        out.extend_from_slice(&self.message[..kept.end]);
        out[..2].copy_from_slice(&request.header.id.to_be_bytes());
        out[HEADER..HEADER + request.question.len()].copy_from_slice(request.question);
        let asked = request.header.flags;
        let mut flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | self.code() | kept.truncated;
        flags |= asked & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        if request.wants_dnssec() || asked & flag::AUTHENTIC != 0 {
            flags |= self.flags() & flag::AUTHENTIC;
        }
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        let left = |ttl| self.left(ttl, now);
        for place in self
            .ttls
            .iter()
            .map(|place| usize::from(*place))
            .take_while(|place| *place < kept.end)
        {
            if let Some(ttl) = out[place..].first_chunk_mut() {
                *ttl = left(u32::from_be_bytes(*ttl)).to_be_bytes();
            }
        }
        let mut counts = kept.counts;
        if let Some(edns) = request.edns {
            append_opt(out, self.code(), edns.dnssec);
            counts[2] += 1;
        }
        for (count, place) in counts.iter().zip([6, 8, 10]) {
            out[place..place + 2].copy_from_slice(&count.to_be_bytes());
        }
    }

    fn left(&self, ttl: u32, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.born).as_secs();
        if age > u64::from(self.lifetime) {
            return STALE_TTL;
        }
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        // What nobody may keep is told as it came.
        ttl.min(self.lifetime.max(FAILURE)).saturating_sub(age)
    }

    /// How much of the reply fits.
    fn fit(&self, limit: usize) -> Fit {
        let start = question_end(&self.message).unwrap_or(HEADER);
        let total = [6, 8, 10].map(|place| number(&self.message, place).unwrap_or_default());
        let mut fit = Fit {
            end: start,
            counts: [0; 3],
            truncated: self.flags() & flag::TRUNCATED,
        };
        for section in 0..total.len() {
            for _ in 0..total[section] {
                match RecordHeader::read(&self.message, fit.end) {
                    Some(record) if record.end <= limit => {
                        fit.end = record.end;
                        fit.counts[section] += 1;
                    }
                    _ => {
                        // Without its answers, or without what says that there are none, it is no reply.
                        if section == 0 || (section == 1 && total[0] == 0) {
                            fit.truncated = flag::TRUNCATED;
                        }
                        return fit;
                    }
                }
            }
        }
        fit
    }

    /// Appends the answers to a reply that has an alias of the name that this one is for; `alias` is where that name is.
    pub(super) fn append(&self, reply: &mut Reply<'_>, alias: usize, now: Instant) {
        let Some(mut place) = question_end(&self.message) else {
            return;
        };
        let (mut owner, mut data) = (Vec::new(), Vec::new());
        for (section, count) in [(Section::Answer, 6), (Section::Authority, 8)] {
            for _ in 0..number(&self.message, count).unwrap_or_default() {
                let Some(record) = RecordHeader::read(&self.message, place) else {
                    return;
                };
                place = record.end;
                owner.clear();
                data.clear();
                let copied =
                    expand(&self.message, record.start, &mut owner).and_then(|_| self.expand_data(&record, &mut data));
                if copied.is_none() || record.class != CLASS_IN {
                    continue;
                }
                let asked = self.message.get(HEADER..HEADER + owner.len());
                let owner = match asked.is_some_and(|asked| asked.eq_ignore_ascii_case(&owner)) {
                    true => Owner::At(alias),
                    false => Owner::Name(&owner, &[]),
                };
                reply.record(section, owner, record.kind, self.left(record.ttl, now), &[&data]);
            }
        }
    }

    /// The data of a record with its names written out; which types have compressed ones is fixed for ever (RFC 3597, 4).
    fn expand_data(&self, record: &RecordHeader, out: &mut Vec<u8>) -> Option<()> {
        let message = &self.message;
        let (fixed, names) = match record.kind {
            kind::NS | kind::CNAME | kind::PTR | kind::DNAME => (0, 1),
            kind::MX => (2, 1),
            kind::SRV => (6, 1),
            kind::SOA => (0, 2),
            _ => (0, 0),
        };
        let mut place = record.data + fixed;
        out.extend_from_slice(message.get(record.data..place)?);
        for _ in 0..names {
            place = expand(message, place, out)?;
        }
        out.extend_from_slice(message.get(place..record.end)?);
        Some(())
    }
}

struct Fit {
    end: usize,
    counts: [u16; 3],
    truncated: u16,
}

fn question_end(message: &[u8]) -> Option<usize> {
    let end = skip_name(message, HEADER)? + 4;
    (end <= message.len()).then_some(end)
}

/// Appends the name at `at` without compression; tells where it ends in the message.
fn expand(message: &[u8], at: usize, out: &mut Vec<u8>) -> Option<usize> {
    let (mut place, mut end, mut jumps, begin) = (at, None, 0, out.len());
    loop {
        let length = *message.get(place)?;
        match length {
            0 => {
                out.push(0);
                return Some(end.unwrap_or(place + 1)).filter(|_| out.len() - begin <= 255);
            }
            1..=63 => {
                let next = place + 1 + usize::from(length);
                out.extend_from_slice(message.get(place..next)?);
                place = next;
            }
            0xc0.. => {
                end = end.or(Some(place + 2));
                place = usize::from(number(message, place)? & 0x3fff);
                jumps += 1;
                if jumps > MAX_JUMPS || out.len() - begin > 255 {
                    return None;
                }
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
