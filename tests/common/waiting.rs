//! A platform that can wait, on the host. Each number is a platform with an event count of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use iommu_assign::sync::{ManyCpus, Platform, Spin, TimedOut, Waiter};

struct Events {
    count: Mutex<u64>,
    changed: Condvar,
    prepared: AtomicUsize,
}

static EVENTS: [Events; 8] =
    [const { Events { count: Mutex::new(0), changed: Condvar::new(), prepared: AtomicUsize::new(0) } }; 8];

#[derive(Debug)]
pub(crate) enum Host<const N: usize> {}

impl<const N: usize> Host<N> {
    /// How often somebody has begun to wait.
    pub(crate) fn prepared() -> usize {
        EVENTS[N].prepared.load(Ordering::Relaxed)
    }
}

impl<const N: usize> Platform for Host<N> {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        *EVENTS[N].count.lock().unwrap() += 1;
        EVENTS[N].changed.notify_all();
    }
}

impl<const N: usize> Waiter for Host<N> {
    type Ticket = u64;
    type Deadline = Instant;

    fn prepare() -> u64 {
        EVENTS[N].prepared.fetch_add(1, Ordering::Relaxed);
        *EVENTS[N].count.lock().unwrap()
    }

    fn wait(ticket: u64, deadline: Option<Instant>) -> Result<(), TimedOut> {
        let mut now = EVENTS[N].count.lock().unwrap();
        while *now == ticket {
            let left =
                deadline.map_or(Duration::from_secs(60), |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(TimedOut);
            }
            now = EVENTS[N].changed.wait_timeout(now, left).unwrap().0;
        }
        Ok(())
    }
}
