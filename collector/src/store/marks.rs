//! What was received of each probe, by the numbers of its Messages: how a Message that comes again is known.
//!
//! Probes and epochs are kept in the order in which they were last heard of; where there are too many, the one unheard for longest is
//! forgotten. Every bound is per site, so that no site can make another one's probes be forgotten.

use nagare_wire::delivery::{ProbeId, Ranges};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Probes of a site that are remembered.
pub const PROBES_MAX: usize = 256;

/// Epochs of a probe that are remembered: each start of a probe that could not deliver yet is one.
pub const EPOCHS_MAX: usize = 1024;

/// Ranges of numbers, and epochs, of a site together: what its probes may cost in memory, 32 octets each, and in each commit.
pub const RANGES_MAX: usize = 16_384;

/// Gaps in the numbers of an epoch; a probe says when a gap will not be filled, so that one that keeps to the rules has few. Of
/// more, the oldest counts as received.
pub const GAPS_MAX: usize = 256;

/// Numbers of Messages, of one site's probe and epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The site: as the certificate says.
    pub site: Arc<str>,
    /// The probe, as it names itself.
    pub probe: ProbeId,
    /// The epoch.
    pub epoch: u64,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

/// All numbers received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    sites: BTreeMap<Arc<str>, Site>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Site {
    probes: Vec<Probe>,
    /// Epochs and ranges of all probes.
    ranges: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Probe {
    id: ProbeId,
    epochs: Vec<(u64, Ranges)>,
}

impl Marks {
    /// Notes numbers as received.
    pub fn insert(&mut self, mark: &Mark) {
        let site = self.sites.entry(Arc::clone(&mark.site)).or_default();
        let new = || Probe { id: mark.probe, epochs: Vec::new() };
        if let Some(gone) = to_last(&mut site.probes, |probe| probe.id == mark.probe, PROBES_MAX, new) {
            site.ranges -= gone.epochs.iter().map(weight).sum::<usize>();
        }
        let Some(probe) = site.probes.last_mut() else { return };
        let known = probe.epochs.len();
        let new = || (mark.epoch, Ranges::default());
        let gone = to_last(&mut probe.epochs, |(epoch, _)| *epoch == mark.epoch, EPOCHS_MAX, new);
        site.ranges += usize::from(gone.is_some() || probe.epochs.len() > known);
        site.ranges -= gone.as_ref().map_or(0, weight);
        let Some((_, received)) = probe.epochs.last_mut() else { return };
        let before = received.as_slice().len();
        received.insert(mark.first, mark.last);
        if received.as_slice().len() > GAPS_MAX + 1 {
            let (first, last) = (received.as_slice()[0].0, received.as_slice()[1].1);
            received.insert(first, last);
        }
        site.ranges = site.ranges + received.as_slice().len() - before;
        site.forget();
    }

    /// Whether a number was received.
    pub fn contains(&self, site: &str, probe: &ProbeId, epoch: u64, number: u64) -> bool {
        let probe = self.sites.get(site).and_then(|site| site.probes.iter().rfind(|found| found.id == *probe));
        let epoch = probe.and_then(|probe| probe.epochs.iter().rfind(|(found, _)| *found == epoch));
        epoch.is_some_and(|(_, received)| received.contains(number))
    }
}

impl Site {
    /// Forgets what was unheard for longest, until the site keeps to its bound.
    fn forget(&mut self) {
        while self.ranges > RANGES_MAX {
            let Some(oldest) = self.probes.first_mut() else { return };
            if oldest.epochs.is_empty() {
                self.probes.remove(0);
            } else {
                self.ranges -= weight(&oldest.epochs.remove(0));
            }
        }
    }
}

/// What an epoch counts towards [`RANGES_MAX`].
fn weight((_, received): &(u64, Ranges)) -> usize {
    1 + received.as_slice().len()
}

/// Moves the item that `is` finds to the end, or puts a new one there; gives the first, which gives way where they are `most`.
fn to_last<T>(items: &mut Vec<T>, is: impl Fn(&T) -> bool, most: usize, new: impl FnOnce() -> T) -> Option<T> {
    let mut gone = None;
    match items.iter().rposition(is) {
        Some(index) => items[index..].rotate_left(1),
        None => {
            if items.len() >= most {
                gone = Some(items.remove(0));
            }
            items.push(new());
        }
    }
    gone
}

/// [`Marks`] as they lie on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct MarksOnDisk(Vec<SiteOnDisk>);

#[derive(Debug, Serialize, Deserialize)]
struct SiteOnDisk {
    site: String,
    probes: Vec<ProbeOnDisk>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProbeOnDisk {
    probe: ProbeId,
    /// Of each epoch the ranges of numbers.
    epochs: Vec<(u64, Vec<(u64, u64)>)>,
}

impl From<&Marks> for MarksOnDisk {
    fn from(marks: &Marks) -> MarksOnDisk {
        let epoch = |(epoch, received): &(u64, Ranges)| (*epoch, received.as_slice().to_vec());
        let probe = |probe: &Probe| ProbeOnDisk { probe: probe.id, epochs: probe.epochs.iter().map(epoch).collect() };
        let sites = marks.sites.iter();
        let sites = sites.map(|(name, site)| SiteOnDisk {
            site: name.to_string(),
            probes: site.probes.iter().filter(|probe| !probe.epochs.is_empty()).map(probe).collect(),
        });
        MarksOnDisk(sites.filter(|site| !site.probes.is_empty()).collect())
    }
}

impl From<MarksOnDisk> for Marks {
    fn from(on_disk: MarksOnDisk) -> Marks {
        let mut marks = Marks::default();
        for SiteOnDisk { site, probes } in on_disk.0 {
            let site: Arc<str> = site.into();
            for ProbeOnDisk { probe, epochs } in probes {
                for (epoch, ranges) in epochs {
                    for (first, last) in ranges {
                        marks.insert(&Mark { site: Arc::clone(&site), probe, epoch, first, last });
                    }
                }
            }
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagare_wire::delivery::WHOLE_EPOCH;

    fn mark(site: &str, probe: u8, epoch: u64, first: u64, last: u64) -> Mark {
        Mark { site: site.into(), probe: [probe; 16], epoch, first, last }
    }

    #[test]
    fn what_was_received_is_known_of_that_site_probe_and_epoch_alone() {
        let mut marks = Marks::default();
        marks.insert(&mark("tokyo", 1, 7, 1, 5));
        assert!(marks.contains("tokyo", &[1; 16], 7, 5));
        for (site, probe, epoch, number) in
            [("osaka", 1, 7, 5), ("tokyo", 2, 7, 5), ("tokyo", 1, 8, 5), ("tokyo", 1, 7, 6)]
        {
            assert!(!marks.contains(site, &[probe; 16], epoch, number), "{site} {probe} {epoch} {number}");
        }
        // Of an epoch that is over a connection that was held up may still bring something.
        marks.insert(&mark("tokyo", 1, 7, 0, WHOLE_EPOCH));
        assert!(marks.contains("tokyo", &[1; 16], 7, 5) && marks.contains("tokyo", &[1; 16], 7, 6));
    }

    #[test]
    fn they_come_back_from_disk() {
        let mut marks = Marks::default();
        for (probe, epoch, first) in [(1, 7, 1), (2, u64::MAX, 3), (1, 9, 4), (1, 7, 10)] {
            marks.insert(&mark("東京", probe, epoch, first, first + 2));
        }
        let text = serde_json::to_string(&MarksOnDisk::from(&marks)).expect("JSON");
        let back: MarksOnDisk = serde_json::from_str(&text).expect("the same");
        assert_eq!(Marks::from(back), marks);
    }

    #[test]
    fn a_site_that_makes_up_probes_epochs_and_gaps_forgets_its_own_alone() {
        let mut marks = Marks::default();
        marks.insert(&mark("tokyo", 1, 1, 1, 1));
        for number in 0..10_000u64 {
            marks.insert(&Mark { probe: u128::from(number).to_be_bytes(), ..mark("osaka", 0, 1, 1, 1) });
            marks.insert(&mark("osaka", 0, number, 1, 1));
            marks.insert(&mark("osaka", 9, 1, 2 * number, 2 * number));
        }
        assert!(marks.contains("tokyo", &[1; 16], 1, 1));
        let Site { probes: osaka, ranges } = &marks.sites["osaka"];
        assert!(osaka.len() <= PROBES_MAX && *ranges <= RANGES_MAX, "{} {ranges}", osaka.len());
        assert_eq!(*ranges, osaka.iter().flat_map(|probe| &probe.epochs).map(weight).sum::<usize>());
        let mut epochs = osaka.iter().flat_map(|probe| &probe.epochs);
        assert!(osaka.iter().all(|probe| probe.epochs.len() <= EPOCHS_MAX));
        assert!(epochs.all(|(_, received)| received.as_slice().len() <= GAPS_MAX + 1));
        assert!(marks.contains("osaka", &[9; 16], 1, 19_998), "the newest are known");
    }
}
