//! Replies of resolvers, written by another implementation and read by it again after they were kept.

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, SOA};
use hickory_proto::rr::{self, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> rr::Name {
    rr::Name::from_ascii(text).unwrap()
}

fn query(text: &str, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    if edns {
        message.set_edns(Edns::new());
    }
    message
}

fn address(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, 1)))
}

fn soa(minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("host.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example."), 3600, RData::SOA(data))
}

fn reply(change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = query("www.example.", true).into_response();
    message.metadata.recursion_available = true;
    change(&mut message);
    message.to_vec().unwrap()
}

fn kept(change: impl FnOnce(&mut Message)) -> Stored {
    Stored::new(reply(change), Instant::now()).unwrap()
}

fn served(stored: &Stored, request: &Message, seconds: u64) -> Message {
    let bytes = request.to_vec().unwrap();
    let request = Request::parse(&bytes).unwrap();
    let mut out = b"old".to_vec();
    stored.reply(
        &request,
        Transport::Udp,
        &mut out,
        stored.born + Duration::from_secs(seconds),
    );
    Message::from_vec(&out).unwrap()
}

#[test]
fn a_kept_reply_is_served_with_the_clients_own_question() {
    let stored = kept(|message| {
        message.add_answer(Record::from_rdata(
            name("www.example."),
            60,
            RData::CNAME(CNAME(name("web.example."))),
        ));
        message.add_answer(address("web.example.", 100));
        message.add_authority(Record::from_rdata(
            name("example."),
            500,
            RData::MX(MX::new(1, name("mx.example."))),
        ));
    });
    assert_eq!(stored.lifetime(), Duration::from_secs(60));
    let reply = served(&stored, &query("WWW.eXample.", false), 13);
    assert_eq!(reply.metadata.id, 77);
    assert_eq!(reply.queries[0].name().to_string(), "WWW.eXample.");
    let ttls: Vec<u32> = reply.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [47, 47], "no longer than the shortest, less what has passed");
    // Its end is written as a pointer to the question, and so comes back in upper case.
    assert_eq!(reply.answers[1].name.to_string(), "web.eXample.");
    assert!(reply.edns.is_none() && reply.metadata.recursion_available && !reply.metadata.authoritative);
    assert!(served(&stored, &query("www.example.", true), 0).edns.is_some());
    assert_eq!(
        served(&stored, &query("www.example.", true), 100).answers[0].ttl,
        STALE_TTL
    );
}

#[test]
fn how_long_a_reply_is_kept() {
    let seconds = |change: fn(&mut Message)| kept(change).lifetime;
    assert_eq!(
        seconds(|message| {
            message.add_answer(address("www.example.", 86_400));
        }),
        MAX_LIFETIME
    );
    assert_eq!(
        seconds(|message| {
            message.add_answer(address("www.example.", 0));
        }),
        0
    );
    assert_eq!(seconds(|_| {}), 0, "nothing, and nothing said about how long");
    assert_eq!(
        seconds(|message| {
            message.add_authority(soa(7));
        }),
        7
    );
    assert_eq!(
        seconds(|message| {
            message.add_authority(soa(9999));
        }),
        MAX_NEGATIVE
    );
    let missing = |message: &mut Message| {
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_authority(soa(20));
    };
    assert_eq!(seconds(missing), 20);
    assert_eq!(
        seconds(|message| message.metadata.response_code = ResponseCode::ServFail),
        FAILURE
    );
    assert_eq!(
        seconds(|message| message.metadata.response_code = ResponseCode::Refused),
        0
    );
}

#[test]
fn what_is_too_large_is_cut_off() {
    let stored = kept(|message| {
        for _ in 0..100 {
            message.add_answer(address("www.example.", 60));
        }
    });
    let reply = served(&stored, &query("www.example.", false), 0);
    assert!(reply.metadata.truncation && reply.answers.len() > 20);
    let stored = kept(|message| {
        message.add_answer(address("www.example.", 60));
        for _ in 0..100 {
            message.add_additional(address("other.example.", 60));
        }
    });
    let reply = served(&stored, &query("www.example.", false), 0);
    assert!(!reply.metadata.truncation && reply.answers.len() == 1 && reply.additionals.len() > 20);
}

#[test]
fn answers_are_appended_to_an_alias() {
    let stored = kept(|message| {
        message.add_answer(Record::from_rdata(
            name("www.example."),
            60,
            RData::CNAME(CNAME(name("web.example."))),
        ));
        message.add_answer(Record::from_rdata(
            name("web.example."),
            60,
            RData::MX(MX::new(5, name("mx.example."))),
        ));
        message.add_authority(soa(5));
    });
    let asked = query("out.shop.svc.cluster.local.", false).to_vec().unwrap();
    let request = Request::parse(&asked).unwrap();
    let mut out = Vec::new();
    let mut reply = Reply::new(&mut out, &request, Transport::Udp);
    let alias = reply.record(
        Section::Answer,
        crate::dns::answer::ASKED,
        kind::CNAME,
        5,
        &[b"\x03www\x07example\0"],
    );
    stored.append(&mut reply, alias.unwrap(), stored.born);
    reply.finish(stored.code(), true);
    let reply = Message::from_vec(&out).unwrap();
    let texts: Vec<String> = reply
        .answers
        .iter()
        .map(|record| format!("{} {}", record.name, record.data))
        .collect();
    let expected = [
        "out.shop.svc.cluster.local. www.example.",
        "www.example. web.example.",
        "web.example. 5 mx.example.",
    ];
    assert_eq!(texts, expected);
    assert_eq!(
        reply.authorities[0].data.to_string(),
        "ns.example. host.example. 1 2 3 4 5"
    );
}

#[test]
fn a_failure_is_a_reply() {
    let stored = Stored::failure(
        &query("www.example.", false).to_vec().unwrap()[HEADER..],
        Instant::now(),
    );
    let reply = served(&stored, &query("www.example.", true), 0);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.queries.len(), 1);
}

proptest! {
    #[test]
    fn no_reply_breaks_anything(at in 0usize..120, byte: u8, cut in 0usize..200) {
        let mut bytes = reply(|message| {
            message.add_answer(Record::from_rdata(name("www.example."), 60, RData::CNAME(CNAME(name("web.example.")))));
            message.add_answer(address("web.example.", 60));
            message.add_authority(soa(5));
        });
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(cut);
        let asked = query("www.example.", true).to_vec().unwrap();
        // Only replies that repeat the question come here.
        if bytes.get(HEADER..HEADER + 17) == asked.get(HEADER..HEADER + 17)
            && let Some(stored) = Stored::new(bytes, Instant::now())
        {
            let request = Request::parse(&asked).unwrap();
            let mut out = Vec::new();
            stored.reply(&request, Transport::Udp, &mut out, stored.born);
            let mut reply = Reply::new(&mut out, &request, Transport::Udp);
            stored.append(&mut reply, HEADER, stored.born);
        }
    }
}
