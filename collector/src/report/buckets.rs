//! Octets over time: each flow's octets are spread evenly over the time that the flow lasted, and none is lost or made up.

#![forbid(unsafe_code)]

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// The longest time that a flow's octets are spread over. A period's flows are looked for this long before it, and a flow
/// whose end is far in the future cannot take its octets there.
pub const FLOW_MAX_MS: i64 = HOUR_MS;

/// The direction of octets, seen from the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From outside to the site.
    In,
    /// From the site to outside.
    Out,
    /// Between hosts of the site.
    Internal,
    /// Between hosts that are both outside the site's networks.
    Transit,
}

/// All directions, in the order in which series are kept.
pub const DIRECTIONS: [Direction; 4] = [Direction::In, Direction::Out, Direction::Internal, Direction::Transit];

impl Direction {
    /// The directions of a flow's forward and reverse octets; an end is inside where it is a local host or a group.
    pub fn of_flow(source_inside: bool, destination_inside: bool) -> (Direction, Direction) {
        match (source_inside, destination_inside) {
            (true, true) => (Direction::Internal, Direction::Internal),
            (true, false) => (Direction::Out, Direction::In),
            (false, true) => (Direction::In, Direction::Out),
            (false, false) => (Direction::Transit, Direction::Transit),
        }
    }
}

/// Octets of each direction in equal steps from the period's start. The steps are those that billing uses for its
/// percentile: 5 minutes; 1 minute where the period is no longer than 2 hours, 1 second where it is no longer than 5 minutes.
#[derive(Clone, Debug)]
pub struct Samples {
    from_ms: i64,
    to_ms: i64,
    step_ms: i64,
    octets: [Vec<u64>; 4],
}

impl Samples {
    /// Empty samples for `from_ms..to_ms`, which must not be empty.
    pub fn new(from_ms: i64, to_ms: i64) -> Samples {
        let step_ms = match to_ms - from_ms {
            length if length <= 5 * MINUTE_MS => SECOND_MS,
            length if length <= 2 * HOUR_MS => MINUTE_MS,
            _ => 5 * MINUTE_MS,
        };
        // A remainder shorter than half a step joins the step before it, or its rate would be an average over nothing.
        let count = ((to_ms - from_ms + step_ms / 2) / step_ms).max(1) as usize;
        Samples { from_ms, to_ms, step_ms, octets: std::array::from_fn(|_| vec![0; count]) }
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.octets[0].len()
    }

    /// Whether no octet was added.
    pub fn is_empty(&self) -> bool {
        self.octets.iter().flatten().all(|octets| *octets == 0)
    }

    /// The length of a step in milliseconds; the last one can be up to half a step shorter or longer.
    pub fn step_ms(&self) -> i64 {
        self.step_ms
    }

    /// The step that `time_ms` falls in; times outside the period fall in the first or the last one.
    pub fn index(&self, time_ms: i64) -> usize {
        let index = time_ms.saturating_sub(self.from_ms).max(0) / self.step_ms;
        (index as usize).min(self.len() - 1)
    }

    /// Start and end of a step.
    pub fn bounds(&self, index: usize) -> (i64, i64) {
        let start = self.from_ms + index as i64 * self.step_ms;
        (start, if index + 1 == self.len() { self.to_ms } else { start + self.step_ms })
    }

    /// Adds the octets of a flow that lasted from `start_ms` to `end_ms`, each step what was sent in it; what was sent before
    /// or after the period is not in it. The steps sum to exactly [`within`] the period.
    pub fn add(&mut self, direction: Direction, start_ms: i64, end_ms: i64, octets: u64) {
        let end_ms = bounded_end(start_ms, end_ms);
        if end_ms < self.from_ms || start_ms >= self.to_ms {
            return;
        }
        for index in self.index(start_ms)..=self.index(end_ms) {
            let part = within(octets, start_ms, end_ms, self.bounds(index));
            let sum = &mut self.octets[direction as usize][index];
            *sum = sum.saturating_add(part);
        }
    }

    /// Octets of one direction, step by step.
    pub fn octets(&self, direction: Direction) -> &[u64] {
        &self.octets[direction as usize]
    }

    /// The average rate of one step in bit/s.
    pub fn rate(&self, direction: Direction, index: usize) -> f64 {
        let (start, end) = self.bounds(index);
        bits_per_second(self.octets[direction as usize][index], end - start)
    }

    /// The step with the highest rate, and that rate in bit/s.
    pub fn peak(&self, direction: Direction) -> (usize, f64) {
        let rates = (0..self.len()).map(|index| (index, self.rate(direction, index)));
        rates.fold((0, 0.0), |best, next| if next.1 > best.1 { next } else { best })
    }

    /// The 95th percentile of the steps' rates in bit/s, as billing takes it: the highest 5 % of the steps are left out, and
    /// the highest of the rest counts.
    pub fn percentile_95(&self, direction: Direction) -> f64 {
        let mut rates: Vec<f64> = (0..self.len()).map(|index| self.rate(direction, index)).collect();
        rates.sort_by(f64::total_cmp);
        rates[(rates.len() * 95).div_ceil(100) - 1]
    }

    /// The average rate over the whole period in bit/s.
    pub fn average(&self, direction: Direction) -> f64 {
        bits_per_second(
            self.octets(direction).iter().fold(0, |sum, octets| sum.saturating_add(*octets)),
            self.to_ms - self.from_ms,
        )
    }

    /// The samples gathered into the chart's steps: as they are up to 48 hours, then hours up to 14 days, then calendar days.
    pub fn chart(&self, tz: &TimeZone) -> Chart {
        let edges = self.chart_edges(tz);
        let mut chart = Chart {
            octets: std::array::from_fn(|_| vec![0u64; edges.len() - 1]),
            peaks: std::array::from_fn(|_| vec![0.0; edges.len() - 1]),
            edges,
        };
        let mut step = 0;
        for index in 0..self.len() {
            while step + 2 < chart.edges.len() && self.bounds(index).0 >= chart.edges[step + 1] {
                step += 1;
            }
            for direction in DIRECTIONS {
                let sum = &mut chart.octets[direction as usize][step];
                *sum = sum.saturating_add(self.octets[direction as usize][index]);
                let peak = &mut chart.peaks[direction as usize][step];
                *peak = peak.max(self.rate(direction, index));
            }
        }
        chart
    }

    fn chart_edges(&self, tz: &TimeZone) -> Vec<i64> {
        let period = self.to_ms - self.from_ms;
        let mut edges: Vec<i64> = if period <= 48 * HOUR_MS {
            (0..self.len()).map(|index| self.bounds(index).0).collect()
        } else if period <= 14 * DAY_MS {
            (0..).map(|step| self.from_ms + step * HOUR_MS).take_while(|edge| *edge < self.to_ms).collect()
        } else {
            self.days(tz)
        };
        edges.push(self.to_ms);
        edges
    }

    /// Calendar days of the time zone: 23 or 25 hours long where clocks change.
    fn days(&self, tz: &TimeZone) -> Vec<i64> {
        let Ok(from) = Timestamp::from_millisecond(self.from_ms) else { return vec![self.from_ms] };
        let from = from.to_zoned_datetime(tz.clone());
        (0..)
            .map_while(|day| from.checked_add(Span::new().try_days(day).ok()?).ok())
            .map(|day| day.timestamp().as_millisecond())
            .take_while(|edge| *edge < self.to_ms)
            .collect()
    }
}

/// Octets and peak rates in the steps that a chart shows.
#[derive(Clone, Debug)]
pub struct Chart {
    /// The steps' edges in milliseconds: one more than there are steps.
    pub edges: Vec<i64>,
    /// Octets by direction and step.
    pub octets: [Vec<u64>; 4],
    /// The highest rate of the samples inside a step, in bit/s, by direction and step.
    pub peaks: [Vec<f64>; 4],
}

impl Chart {
    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.edges.len() - 1
    }

    /// The average rate of one step in bit/s.
    pub fn rate(&self, direction: Direction, step: usize) -> f64 {
        bits_per_second(self.octets[direction as usize][step], self.edges[step + 1] - self.edges[step])
    }
}

/// The part of a flow's octets (or packets) that falls into the time from `period.0` until before `period.1`, when they were
/// sent evenly from `start_ms` to `end_ms`. Parts of periods that follow each other sum to the whole, to the octet.
pub fn within(octets: u64, start_ms: i64, end_ms: i64, period: (i64, i64)) -> u64 {
    let end_ms = bounded_end(start_ms, end_ms);
    let sent_before = |time_ms: i64| match time_ms {
        time if time <= start_ms => 0,
        time if time >= end_ms => octets,
        time => {
            let share = u128::from(octets) * time.abs_diff(start_ms) as u128 / end_ms.abs_diff(start_ms) as u128;
            u64::try_from(share).unwrap_or(octets)
        }
    };
    sent_before(period.1) - sent_before(period.0)
}

/// A flow never ends before it starts, and counts as [`FLOW_MAX_MS`] long where it says more.
fn bounded_end(start_ms: i64, end_ms: i64) -> i64 {
    end_ms.clamp(start_ms, start_ms.saturating_add(FLOW_MAX_MS))
}

fn bits_per_second(octets: u64, duration_ms: i64) -> f64 {
    octets as f64 * 8000.0 / duration_ms.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a flow says of its times, its octets are all there, over all periods together.
        #[test]
        fn octets_are_kept(edges in prop::array::uniform3(1i64..20 * DAY_MS), start in 0i64..20 * DAY_MS, length in -1000i64..3 * DAY_MS, octets: u64) {
            let mut edges = [0, edges[0], edges[1], edges[2], 21 * DAY_MS];
            edges.sort_unstable();
            let mut sum = 0;
            for period in edges.windows(2).filter(|period| period[0] < period[1]) {
                let mut samples = Samples::new(period[0], period[1]);
                samples.add(Direction::Out, start, start + length, octets);
                let part: u64 = samples.octets(Direction::Out).iter().sum();
                prop_assert_eq!(part, within(octets, start, start + length, (period[0], period[1])));
                prop_assert_eq!(samples.octets(Direction::In).iter().sum::<u64>(), 0);
                let chart = samples.chart(&TimeZone::UTC);
                prop_assert_eq!(chart.octets[1].iter().sum::<u64>(), part);
                prop_assert!(chart.edges.windows(2).all(|pair| pair[0] < pair[1]));
                sum += part;
            }
            prop_assert_eq!(sum, octets);
        }

        #[test]
        fn no_times_do_harm(start: i64, end: i64, octets: u64, from in -DAY_MS..DAY_MS) {
            let mut samples = Samples::new(from, from + DAY_MS);
            samples.add(Direction::In, start, end, octets);
            samples.add(Direction::In, start, end, octets);
            prop_assert!(within(octets, start, end, (i64::MIN, i64::MAX)) <= octets);
        }
    }

    #[test]
    fn spread_is_even() {
        let mut samples = Samples::new(0, HOUR_MS);
        samples.add(Direction::In, 30_000, 150_000, 1200);
        assert_eq!(samples.octets(Direction::In)[..4], [300, 600, 300, 0]);
    }

    #[test]
    fn percentile_leaves_out_the_highest_twentieth() {
        let mut samples = Samples::new(0, 100 * 5 * MINUTE_MS);
        for step in 0..100 {
            samples.add(Direction::In, step * 5 * MINUTE_MS, step * 5 * MINUTE_MS, (step as u64 + 1) * 37_500);
        }
        assert_eq!(samples.percentile_95(Direction::In), 95_000.0);
        assert_eq!(samples.peak(Direction::In), (99, 100_000.0));
        assert_eq!(samples.average(Direction::In), 50_500.0);
    }

    #[test]
    fn days_are_the_time_zones_own() {
        let tz = TimeZone::get("Europe/Berlin").expect("the time zone database (tzdata) is installed");
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond();
        let samples = Samples::new(at("2026-10-01T00:00:00+02:00"), at("2026-11-01T00:00:00+01:00"));
        let edges = samples.chart(&tz).edges;
        assert_eq!(edges.len(), 32);
        assert!(edges.windows(2).any(|day| day[1] - day[0] == 25 * HOUR_MS));
        assert_eq!(edges.windows(2).filter(|day| day[1] - day[0] == DAY_MS).count(), 30);
    }
}
