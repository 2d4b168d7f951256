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
    client: IpAddr,
}

impl Slots {
    pub(super) fn new(max: usize, max_per_client: usize) -> Self {
        Self { max, max_per_client, taken: Mutex::default() }
    }

    /// A place for a client's connection, or the limit that it would be over.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, usize> {
        let client = client_of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.max {
            return Err(self.max);
        }
        let count = taken.by_client.entry(client).or_insert(0);
        if *count >= self.max_per_client {
            return Err(self.max_per_client);
        }
        *count += 1;
        taken.total += 1;
        Ok(Slot { slots: Arc::clone(self), client })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
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
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let held: Vec<_> = std::iter::from_fn(|| slots.take(one).ok()).collect();
        assert_eq!(held.len(), 3);
        let last = slots.take(other).expect("a place for another client");
        assert_eq!(slots.take(other).unwrap_err(), 4);
        drop((held, last));
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
