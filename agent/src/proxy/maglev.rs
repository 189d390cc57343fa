//! Look-up tables after "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), with weights. Pure.
//!
//! Every backend has its own order of preference over the table's places, and backends take turns at taking their
//! next free one. So each gets its share within one place, and when one goes, nearly all places of the others stay.

use hull_ebpf_types as bpf;

use super::tables::Backend;

/// Lengths of tables, prime numbers.
const LENGTHS: [u32; 7] = [1021, 2039, 4093, 8191, 16_381, 32_749, 65_521];
/// Places for each backend in a new table, where it is to be had: shares are then exact to one percent.
const PLACES: usize = 100;
/// With fewer or more places for each backend than these a table gets another length.
const KEPT: std::ops::RangeInclusive<usize> = PLACES / 2..=PLACES * 16;
const FREE: u16 = u16::MAX;

/// The length of the table for so many backends; zero without any. Another length moves nearly all clients: the present
/// one stays as long as it serves.
pub(super) fn length(present: u32, backends: usize) -> u32 {
    if backends == 0 {
        return 0;
    }
    if LENGTHS.contains(&present) && KEPT.contains(&(present as usize / backends)) {
        return present;
    }
    let enough = LENGTHS
        .iter()
        .find(|length| **length as usize >= backends.saturating_mul(PLACES));
    *enough.unwrap_or(&LENGTHS[LENGTHS.len() - 1])
}

/// A table: for each place the index of a backend. Backends beyond the table's length get no place.
pub(super) fn table(length: u32, backends: &[Backend]) -> Vec<u16> {
    if backends.is_empty() {
        return Vec::new();
    }
    let length = length as usize;
    let mut table = vec![FREE; length];
    let heaviest = backends.iter().map(|backend| backend.weight).max().unwrap_or(1);
    let mut turns: Vec<Turn> = backends.iter().map(|backend| Turn::new(backend, length)).collect();
    let mut free = length;
    while free > 0 {
        for (index, turn) in turns.iter_mut().enumerate().take(usize::from(FREE)) {
            turn.credit += turn.weight;
            if turn.credit < heaviest {
                continue;
            }
            turn.credit -= heaviest;
            let place = turn.next_free(&table);
            table[place] = index as u16;
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    table
}

/// A backend's order of preference: from an offset in steps of a fixed width, which is all places as the length is prime.
struct Turn {
    place: usize,
    step: usize,
    weight: u32,
    credit: u32,
}

impl Turn {
    fn new(backend: &Backend, length: usize) -> Turn {
        let hash = hash(&backend.endpoint);
        let length = length as u64;
        Turn {
            place: ((hash >> 32) % length) as usize,
            step: ((hash & 0xffff_ffff) % (length - 1) + 1) as usize,
            weight: backend.weight.max(1),
            credit: 0,
        }
    }

    fn next_free(&mut self, table: &[u16]) -> usize {
        loop {
            let place = self.place;
            self.place = (place + self.step) % table.len();
            if table[place] == FREE {
                return place;
            }
        }
    }
}

/// The same on every node and in every release: clients depend on it.
fn hash(endpoint: &bpf::Endpoint) -> u64 {
    let port = u64::from(u16::from_be(endpoint.port));
    let words = endpoint.address.iter().map(|word| u64::from(u32::from_be(*word)));
    words
        .chain([port])
        .fold(0x9e37_79b9_7f4a_7c15, |state, word| mix(state ^ word))
}

/// The finalizer of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    fn backends(count: u32) -> Vec<Backend> {
        (0..count)
            .map(|i| Backend::new(SocketAddrV4::new(Ipv4Addr::from_bits(0x0af4_0001 + i), 8080)))
            .collect()
    }

    fn new_table(backends: &[Backend]) -> Vec<u16> {
        table(length(0, backends.len()), backends)
    }

    fn shares(table: &[u16], backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        table.iter().for_each(|index| shares[usize::from(*index)] += 1);
        shares
    }

    #[test]
    fn lengths_are_prime_and_change_seldom() {
        let prime = |n: u32| (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(LENGTHS.iter().all(|length| prime(*length)));
        let new = [0, 1, 10, 11, 100, 655, 60_000].map(|backends| length(0, backends));
        assert_eq!(new, [0, 1021, 1021, 2039, 16_381, 65_521, 65_521]);
        assert_eq!(length(1021, 20), 1021, "it still serves");
        assert_eq!(length(1021, 21), 4093);
        assert_eq!(length(16_381, 11), 16_381);
        assert_eq!(length(16_381, 10), 1021);
    }

    #[test]
    fn every_backend_has_its_share() {
        for count in [1, 2, 7, 100] {
            let shares = shares(&new_table(&backends(count)), count as usize);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
        }
        let mut weighted = backends(3);
        weighted[1].weight = 3;
        let places = new_table(&weighted);
        let shares = shares(&places, 3);
        let fifth = places.len() / 5;
        assert!(
            shares[0].abs_diff(fifth) <= 2 && shares[1].abs_diff(3 * fifth) <= 4,
            "{shares:?}"
        );
        assert!(new_table(&[]).is_empty());
    }

    #[test]
    fn few_clients_move_when_a_backend_goes_or_comes() {
        for count in [3_u32, 10, 50] {
            let all = backends(count);
            let before = new_table(&all);
            for gone in [0, count as usize / 2, count as usize - 1] {
                let mut fewer = all.clone();
                fewer.remove(gone);
                let after = table(length(before.len() as u32, fewer.len()), &fewer);
                assert_eq!(after.len(), before.len());
                let moved = before.iter().zip(&after).filter(|(old, new)| {
                    usize::from(**old) != gone && all[usize::from(**old)] != fewer[usize::from(**new)]
                });
                let moved = moved.count();
                // The paper measures a few percent; the places of the backend that is gone are not counted here.
                assert!(
                    moved * 100 <= before.len() * 10,
                    "{moved} of {} with {count}",
                    before.len()
                );
            }
        }
    }
}
