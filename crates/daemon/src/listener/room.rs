//! Who is connected: a bounded number of places, and who gives up his when there are none left.
//!
//! Must not know what is served. Whoever has a request in hand keeps his place; of the others, it goes from the one who has
//! asked for nothing for longest to the one who comes. So a crowd that asks for nothing keeps nobody out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) struct Room {
    most: usize,
    places: Mutex<Places>,
    dismissed: Counter,
}

#[derive(Default)]
struct Places {
    /// Numbers connections, and the moments at which they began to be idle.
    next: u64,
    /// Without those that were sent away and are about to go.
    taken: usize,
    guests: HashMap<u64, Guest>,
    /// Connections without a request in hand, by the moment since when.
    idle: BTreeMap<u64, u64>,
}

struct Guest {
    sent_away: bool,
    in_hand: usize,
    /// The key in [`Places::idle`], while nothing is in hand.
    idle: u64,
    since: Instant,
    leave: CancellationToken,
}

/// One connection's place, until it is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
    leave: CancellationToken,
}

/// One request that is being answered.
pub(super) struct InHand(Arc<Place>);

impl Room {
    pub fn new(most: usize, dismissed: Counter) -> Arc<Self> {
        Arc::new(Self { most, places: Mutex::default(), dismissed })
    }

    /// `None`: everybody who is here has requests in hand.
    pub fn enter(self: &Arc<Self>) -> Option<Arc<Place>> {
        let mut places = self.lock();
        if places.taken >= self.most {
            places.dismiss()?;
            self.dismissed.inc();
        }
        places.taken += 1;
        let leave = CancellationToken::new();
        let (number, idle) = (places.number(), places.number());
        let guest = Guest { sent_away: false, in_hand: 0, idle, since: Instant::now(), leave: leave.clone() };
        places.guests.insert(number, guest);
        places.idle.insert(idle, number);
        Some(Arc::new(Place { room: self.clone(), number, leave }))
    }

    /// Ends the connection that has been idle for longest, where the machine itself has no room for more.
    pub fn dismiss(&self) {
        if self.lock().dismiss().is_some() {
            self.dismissed.inc();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// `None`: there was nobody to be sent away.
    fn dismiss(&mut self) -> Option<()> {
        let (_, number) = self.idle.pop_first()?;
        let guest = self.guests.get_mut(&number)?;
        guest.sent_away = true;
        guest.leave.cancel();
        self.taken -= 1;
        Some(())
    }
}

impl Place {
    /// Counts as not idle until what is returned is dropped.
    pub fn request(self: &Arc<Self>) -> InHand {
        let mut places = self.room.lock();
        let Places { guests, idle, .. } = &mut *places;
        if let Some(guest) = guests.get_mut(&self.number) {
            guest.in_hand += 1;
            idle.remove(&guest.idle);
        }
        InHand(self.clone())
    }

    /// Since when nothing is in hand; `None` while something is.
    pub fn idle_since(&self) -> Option<Instant> {
        let places = self.room.lock();
        places.guests.get(&self.number).filter(|guest| guest.in_hand == 0).map(|guest| guest.since)
    }

    /// Waits until somebody else needs the place.
    pub async fn lost(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.room.lock();
        if let Some(guest) = places.guests.remove(&self.number).filter(|guest| !guest.sent_away) {
            places.idle.remove(&guest.idle);
            places.taken -= 1;
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut places = self.0.room.lock();
        let moment = places.number();
        let Places { guests, idle, .. } = &mut *places;
        let Some(guest) = guests.get_mut(&self.0.number) else { return };
        guest.in_hand -= 1;
        if guest.in_hand == 0 && !guest.sent_away {
            (guest.idle, guest.since) = (moment, Instant::now());
            idle.insert(moment, self.0.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_who_asked_for_nothing_for_longest_goes() {
        let room = Room::new(3, Counter::default());
        let [a, b, c] = [(); 3].map(|()| room.enter().unwrap());
        let lost = |places: &[&Arc<Place>]| places.iter().map(|place| place.leave.is_cancelled()).collect::<Vec<_>>();
        let (of_a, again) = (a.request(), a.request());
        let d = room.enter().unwrap();
        assert_eq!(lost(&[&a, &b, &c, &d]), [false, true, false, false], "a is busy, b came before c");
        drop((of_a, c.request()));
        assert!(a.idle_since().is_none(), "one request is still in hand");
        drop(again);
        let e = room.enter().unwrap();
        assert_eq!(lost(&[&a, &c, &d, &e]), [false, false, true, false], "d has never asked, the others later than d");
        let busy = [a.request(), c.request(), e.request()];
        assert!(room.enter().is_none(), "nobody can be sent away");
        drop((busy, b, d));
        assert!(room.enter().is_some() && lost(&[&a, &c, &e]).contains(&true));
    }

    #[test]
    fn places_are_given_back() {
        let room = Room::new(2, Counter::default());
        for _ in 0..5 {
            let (a, b) = (room.enter().unwrap(), room.enter().unwrap());
            let busy = [a.request(), b.request()];
            assert!(room.enter().is_none());
            drop(b);
            assert!(room.enter().is_none(), "its request is still being answered");
            drop((busy, a));
        }
        let places = room.lock();
        assert!(places.taken == 0 && places.guests.is_empty() && places.idle.is_empty());
    }
}
