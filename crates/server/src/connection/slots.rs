//! How many connections there are, and whose.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts connections in all and by client.
#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    max_per_client: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    client: Option<IpAddr>,
}

impl Slots {
    pub(super) fn new(max: usize, max_per_client: usize) -> Self {
        Self { max, max_per_client, taken: Mutex::default() }
    }

    /// A place for a connection, of a client where that has an address; or the limit that it
    /// would be over.
    pub(super) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Slot, usize> {
        let client = address.map(client_of);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.max {
            return Err(self.max);
        }
        if let Some(client) = client {
            let count = taken.by_client.entry(client).or_insert(0);
            if *count >= self.max_per_client {
                return Err(self.max_per_client);
            }
            *count += 1;
        }
        taken.total += 1;
        Ok(Slot { slots: Arc::clone(self), client })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let Some(client) = self.client else { return };
        if let Some(count) = taken.by_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&client);
            }
        }
    }
}

/// Who an address belongs to: on IPv6 a client has a network of its own.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_for_others() {
        let slots = Arc::new(Slots::new(4, 3));
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().ok());
        let held: Vec<_> = std::iter::from_fn(|| slots.take(one).ok()).collect();
        assert_eq!(held.len(), 3);
        let last = slots.take(other).expect("a place for another client");
        assert_eq!(slots.take(other).unwrap_err(), 4);
        drop(held);
        // Who has no address counts among all.
        let unknown: Vec<_> = std::iter::from_fn(|| slots.take(None).ok()).collect();
        assert_eq!(unknown.len(), 3);
        drop((unknown, last));
        let taken = slots.taken.lock().unwrap();
        assert_eq!((taken.total, taken.by_client.len()), (0, 0));
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let client = |text: &str| client_of(text.parse().unwrap());
        assert_eq!(client("2001:db8:1:2::3"), client("2001:db8:1:2:ffff::4"));
        assert_ne!(client("2001:db8:1:2::3"), client("2001:db8:1:3::3"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
    }
}
