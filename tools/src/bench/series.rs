//! What was measured over time: records and latencies in windows of equal length.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::report::{LATENCY_US_MAX, Latencies};

/// The windows of a short run.
const WIDTH: Duration = Duration::from_millis(100);

/// Windows of a series. When a run takes longer, two become one, again and again.
const WINDOWS_MAX: usize = 600;

/// Records and latencies over the time of a run.
#[derive(Debug)]
pub(crate) struct Series {
    start: Instant,
    width: Duration,
    windows: Vec<Window>,
}

/// What happened in one window.
#[derive(Debug)]
struct Window {
    records: u64,
    latencies: Histogram<u32>,
}

/// One window, for reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// When the window began, in seconds since the run did.
    pub(crate) seconds: f64,
    pub(crate) records_per_second: f64,
    /// Latencies in microseconds; `None` when nothing was measured in it.
    pub(crate) latency_us: Option<PointLatency>,
}

/// Latencies of one window, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PointLatency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Window {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { records: 0, latencies: Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)? })
    }
}

impl Series {
    fn new(start: Instant) -> Self {
        Self { start, width: WIDTH, windows: Vec::new() }
    }

    /// Notes that records were done by `now`.
    pub(crate) fn count(&mut self, now: Instant, records: u64) -> anyhow::Result<()> {
        self.window(now)?.records += records;
        Ok(())
    }

    fn latency(&mut self, now: Instant, latency: Duration, count: u64) -> anyhow::Result<()> {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.window(now)?.latencies.saturating_record_n(us, count);
        Ok(())
    }

    fn window(&mut self, now: Instant) -> anyhow::Result<&mut Window> {
        let elapsed = now.saturating_duration_since(self.start);
        while self.place(elapsed) >= WINDOWS_MAX {
            self.merge()?;
        }
        let place = self.place(elapsed);
        while self.windows.len() <= place {
            self.windows.push(Window::new()?);
        }
        Ok(&mut self.windows[place])
    }

    fn place(&self, elapsed: Duration) -> usize {
        usize::try_from(elapsed.as_nanos() / self.width.as_nanos()).unwrap_or(usize::MAX)
    }

    /// Two windows become one.
    fn merge(&mut self) -> anyhow::Result<()> {
        self.width *= 2;
        let mut merged: Vec<Window> = Vec::with_capacity(WINDOWS_MAX);
        for (index, window) in std::mem::take(&mut self.windows).into_iter().enumerate() {
            match merged.last_mut().filter(|_| index % 2 == 1) {
                Some(last) => {
                    last.records += window.records;
                    last.latencies.add(&window.latencies)?;
                }
                None => merged.push(window),
            }
        }
        self.windows = merged;
        Ok(())
    }

    /// Adds what another series of the same time has.
    fn absorb(&mut self, mut other: Self) -> anyhow::Result<()> {
        while self.width < other.width {
            self.merge()?;
        }
        while other.width < self.width {
            other.merge()?;
        }
        while self.windows.len() < other.windows.len() {
            self.windows.push(Window::new()?);
        }
        for (window, other) in self.windows.iter_mut().zip(other.windows) {
            window.records += other.records;
            window.latencies.add(&other.latencies)?;
        }
        Ok(())
    }

    /// Every window up to the end of the run, the last one only as long as it was.
    pub(crate) fn points(&self, elapsed: Duration) -> Vec<Point> {
        let width = self.width.as_secs_f64();
        let point = |(index, window): (usize, &Window)| {
            let seconds = index as f64 * width;
            let length = (elapsed.as_secs_f64() - seconds).clamp(width / 100.0, width);
            let at = |quantile| window.latencies.value_at_quantile(quantile);
            Point {
                seconds,
                records_per_second: window.records as f64 / length,
                latency_us: (!window.latencies.is_empty()).then(|| PointLatency {
                    p50: at(0.5),
                    p99: at(0.99),
                    max: window.latencies.max(),
                }),
            }
        };
        self.windows.iter().enumerate().map(point).collect()
    }
}

/// Latencies as a whole and over time.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) latencies: Latencies,
    pub(crate) series: Series,
}

impl Measured {
    /// Nothing yet; time counts from `start`.
    pub(crate) fn new(start: Instant) -> anyhow::Result<Self> {
        Ok(Self { latencies: Latencies::new()?, series: Series::new(start) })
    }

    /// Adds what somebody else measured, whose time counts from the same start.
    pub(crate) fn absorb(&mut self, other: Self) -> anyhow::Result<()> {
        self.latencies.absorb(&other.latencies)?;
        self.series.absorb(other.series)
    }

    /// Notes that `count` records were done at `now`, each after `latency`.
    pub(crate) fn add(&mut self, now: Instant, latency: Duration, count: u64) -> anyhow::Result<()> {
        self.series.count(now, count)?;
        self.wait(now, latency, count)
    }

    /// Notes a latency that is not one of single records.
    pub(crate) fn wait(&mut self, now: Instant, latency: Duration, count: u64) -> anyhow::Result<()> {
        self.latencies.add(latency, count);
        self.series.latency(now, latency, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_what_happened_in_them() {
        let start = Instant::now();
        let mut measured = Measured::new(start).unwrap();
        let ms = Duration::from_millis;
        measured.add(start + ms(10), ms(1), 5).unwrap();
        measured.add(start + ms(250), ms(3), 10).unwrap();
        let points = measured.series.points(ms(300));
        assert_eq!(points.len(), 3);
        let rates: Vec<_> = points.iter().map(|point| point.records_per_second.round()).collect();
        assert_eq!(rates, [50.0, 0.0, 100.0]);
        assert!((990..=1010).contains(&points[0].latency_us.unwrap().p50));
        assert_eq!(points[1].latency_us, None);
        let half = measured.series.points(ms(250));
        assert!(
            half[2].records_per_second > 150.0,
            "the last window is as long as the run was in it: {half:?}"
        );
    }

    #[test]
    fn a_long_run_has_longer_windows_and_loses_nothing() {
        let start = Instant::now();
        let mut measured = Measured::new(start).unwrap();
        for second in 0..1000 {
            measured.add(start + Duration::from_secs(second), Duration::from_millis(second + 1), 1).unwrap();
        }
        assert!(measured.series.windows.len() <= WINDOWS_MAX);
        assert_eq!(measured.series.width, Duration::from_millis(3200));
        let points = measured.series.points(Duration::from_secs(1000));
        let width = measured.series.width.as_secs_f64();
        let records: f64 = points.iter().map(|point| point.records_per_second * width).sum();
        assert!((999.0..=1001.5).contains(&records), "{records}");
        assert_eq!(measured.latencies.count(), 1000);
    }

    #[test]
    fn what_several_measured_is_one_measurement() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let measured = |ends: &[u64]| {
            let mut measured = Measured::new(start).unwrap();
            for &end in ends {
                measured.add(after(end), Duration::from_millis(1), 10).unwrap();
            }
            measured
        };
        // One has wider windows than the other.
        for (one, other) in [(&[0, 1, 100][..], &[1, 5][..]), (&[1, 5], &[0, 1, 100])] {
            let mut whole = measured(one);
            whole.absorb(measured(other)).unwrap();
            let points = whole.series.points(Duration::from_secs(200));
            let width = whole.series.width.as_secs_f64();
            let records: f64 = points.iter().map(|point| point.records_per_second * width).sum();
            assert!((49.9..50.1).contains(&records), "{records}");
            assert_eq!(whole.latencies.count(), 50);
        }
    }
}
