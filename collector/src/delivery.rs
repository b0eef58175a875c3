//! The collector's side of the delivery layer ([`nagare_wire::delivery`]): which Messages came before, and which may be acknowledged.

#![forbid(unsafe_code)]

use crate::store::{Mark, Marks};
use nagare_wire::delivery::{Ack, ProbeId};
use std::collections::VecDeque;
use std::sync::Arc;

/// Acknowledgements that a session may have to wait for; of a probe that numbers wildly, and thus makes more, the session ends.
pub const PENDING_MAX: usize = 4_096;

/// Streams of consecutive numbers that a probe sends in turn: what is metered now, and what waited.
const STREAMS: usize = 2;

/// What the listener's sessions share: the numbers of all Messages received, durable or on their way to the store.
#[derive(Debug, Default)]
pub struct Received {
    marks: Marks,
    /// Those that go to the store with the next batch.
    fresh: Vec<Mark>,
}

impl Received {
    /// Begins with what the store holds.
    pub fn new(marks: Marks) -> Received {
        Received { marks, fresh: Vec::new() }
    }

    /// Notes numbers. What follows on one of the marks before is added to it.
    fn insert(&mut self, mark: Mark) {
        self.marks.insert(&mark);
        match self.fresh.iter_mut().rev().take(STREAMS).find(|before| follows(before, &mark)) {
            Some(before) => before.last = mark.last,
            None => self.fresh.push(mark),
        }
    }

    /// The marks for the next batch.
    pub fn take_fresh(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.fresh)
    }

    /// How many there are for the next batch.
    pub fn fresh(&self) -> usize {
        self.fresh.len()
    }
}

fn follows(last: &Mark, next: &Mark) -> bool {
    let same = last.site == next.site && last.probe == next.probe && last.epoch == next.epoch;
    same && last.last.checked_add(1) == Some(next.first)
}

/// One session's delivery.
#[derive(Debug)]
pub struct Delivery {
    site: Arc<str>,
    probe: ProbeId,
    /// Acknowledgements to be sent when the batch of that number is durable.
    pending: VecDeque<(u64, Ack)>,
}

impl Delivery {
    /// Of a probe that has said who it is.
    pub fn new(site: Arc<str>, probe: ProbeId) -> Delivery {
        Delivery { site, probe, pending: VecDeque::new() }
    }

    /// Whether a Message came before, in this session or another.
    pub fn is_duplicate(&self, received: &Received, epoch: u64, number: u64) -> bool {
        received.marks.contains(&self.site, &self.probe, epoch, number)
    }

    /// Notes a Message, which goes to the store with that batch; it is acknowledged when that is durable. Also of
    /// one that came again: it may be on its way only. False where too many wait.
    pub fn take(&mut self, received: &mut Received, epoch: u64, number: u64, batch: u64) -> bool {
        received.insert(self.mark(epoch, number, number));
        let follows =
            |(at, ack): &&mut (u64, Ack)| *at == batch && ack.epoch == epoch && ack.last.checked_add(1) == Some(number);
        match self.pending.iter_mut().rev().take(STREAMS).find(follows) {
            Some((_, ack)) => ack.last = number,
            None => self.pending.push_back((batch, Ack { epoch, first: number, last: number })),
        }
        self.pending.len() <= PENDING_MAX
    }

    /// Notes that numbers up to this one will not come again.
    pub fn settle(&self, received: &mut Received, epoch: u64, number: u64) {
        received.insert(self.mark(epoch, 0, number));
    }

    fn mark(&self, epoch: u64, first: u64, last: u64) -> Mark {
        Mark { site: Arc::clone(&self.site), probe: self.probe, epoch, first, last }
    }

    /// The acknowledgements that may be sent, now that the batch `durable` and all before it are.
    pub fn due(&mut self, durable: u64) -> impl Iterator<Item = Ack> + '_ {
        std::iter::from_fn(move || self.pending.pop_front_if(|(batch, _)| *batch <= durable).map(|(_, ack)| ack))
    }

    /// Whether anything waits to be acknowledged.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_a_duplicate_and_not_acknowledged() {
        let mut received = Received::default();
        let mut delivery = Delivery::new("tokyo".into(), [1; 16]);
        for number in 1..=3 {
            assert!(!delivery.is_duplicate(&received, 9, number) && delivery.take(&mut received, 9, number, 1));
        }
        assert!(delivery.take(&mut received, 9, 4, 2));
        let mut again = Delivery::new("tokyo".into(), [1; 16]);
        assert!(again.is_duplicate(&received, 9, 2) && again.take(&mut received, 9, 2, 3));
        assert_eq!(delivery.due(0).count(), 0);
        assert_eq!(delivery.due(1).collect::<Vec<_>>(), [Ack { epoch: 9, first: 1, last: 3 }]);
        assert_eq!((again.due(2).count(), again.due(3).count()), (0, 1));
        assert!(delivery.is_waiting() && !again.is_waiting());
        let marks: Vec<_> = received.take_fresh().iter().map(|mark| (mark.first, mark.last)).collect();
        assert_eq!(marks, [(1, 4), (2, 2)]);
        // Two streams in turn make two acknowledgements.
        (10..20).for_each(|number| {
            assert!(again.take(&mut received, 9, number, 5) && again.take(&mut received, 9, number + 90, 5));
        });
        assert_eq!(again.due(5).map(|ack| (ack.first, ack.last)).collect::<Vec<_>>(), [(10, 19), (100, 109)]);
        assert_eq!(received.take_fresh().len(), 2);
        assert!(!Delivery::new("osaka".into(), [1; 16]).is_duplicate(&received, 9, 2), "another site's");
    }
}
