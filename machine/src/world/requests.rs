//! The request queue of a [`World`](super::World), and what became of all that was asked.

use iommu_assign::assign::{Answer, Completion, Error, Progress, Request, RequestQueue, Target};
use iommu_assign::sync::Spin;

use super::{World, deassigned, removed};
use crate::op::{Ask, Slot};
use crate::specification::Outcome;

#[derive(Default)]
pub(super) struct Requests {
    queue: RequestQueue<Spin>,
    asked: Vec<Asked>,
}

/// A request, and its answer once it was seen.
struct Asked {
    ask: Ask,
    completion: Completion<Spin>,
    answer: Option<Outcome>,
}

impl Asked {
    fn polled(&self) -> Option<Outcome> {
        self.completion.poll().map(outcome)
    }
}

fn outcome(answer: &Result<Answer, Error>) -> Outcome {
    match answer {
        Ok(Answer::Deassigned(done)) => deassigned(done),
        Ok(Answer::Removed(removal)) => removed(removal),
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::from(error),
    }
}

impl Requests {
    /// What was answered since this was asked last: one request, with its number. An answer never changes.
    fn news(&mut self) -> Result<Option<(usize, Outcome)>, String> {
        let mut news = None;
        for (number, asked) in self.asked.iter_mut().enumerate() {
            let now = asked.polled();
            if now == asked.answer {
                continue;
            }
            if asked.answer.is_some() || news.is_some() {
                return Err(format!("C-12: request {number} ({:?}) is answered {now:?} too", asked.ask));
            }
            asked.answer.clone_from(&now);
            news = now.map(|outcome| (number, outcome));
        }
        Ok(news)
    }

    pub(super) fn cancel(&mut self, slot: Slot) -> Result<Outcome, String> {
        let oldest =
            self.asked.iter().enumerate().find(|(_, asked)| asked.ask.slot() == slot && asked.answer.is_none());
        let Some((number, asked)) = oldest else { return Ok(Outcome::Skipped) };
        if !asked.completion.cancel() {
            return Err(format!("C-12: request {number} has not started, and cannot be cancelled"));
        }
        match self.news()? {
            Some((answered, outcome)) if answered == number => Ok(outcome),
            news => Err(format!("C-12: request {number} was cancelled, but answered is {news:?}")),
        }
    }
}

impl World<'_> {
    pub(super) fn submit(&mut self, ask: Ask) -> Outcome {
        if matches!(ask, Ask::Offer(slot) if !slot.is_offered()) {
            return Outcome::Skipped;
        }
        let domain = ask.guest().map(|guest| self.guests.get(&guest).map(|running| running.domain.clone()));
        let target = Target::Key(ask.slot().key());
        let request = match (ask, domain) {
            (Ask::Offer(slot), _) => Request::Add(self.spec(slot)),
            (Ask::Unplug(slot), _) => Request::Remove(slot.key().into()),
            (Ask::Take(_), _) => Request::Deassign(target),
            (Ask::Give(..), Some(Some(domain))) => Request::Assign(target, domain),
            (Ask::Pass(..), Some(Some(domain))) => Request::Reassign(target, domain),
            (Ask::Give(..) | Ask::Pass(..), _) => return Outcome::Skipped,
        };
        let requests = &mut self.requests;
        let completion = requests.queue.submit(requests.queue.prepare(request));
        requests.asked.push(Asked { ask, completion, answer: None });
        Outcome::Done
    }

    /// A worker's round, up to the first answer.
    pub(super) fn work(&mut self) -> Result<Outcome, String> {
        let Some(mut worker) = self.requests.queue.worker() else { return Err("C-12: the worker is not there".into()) };
        let progress = worker.run_one(self.service);
        drop(worker);
        let news = self.requests.news()?;
        match (progress, news) {
            (Progress::Idle { waiting }, None) => Ok(Outcome::Idle(waiting)),
            (Progress::Answered, Some((number, outcome))) => {
                let asked = self.requests.asked.get(number);
                let added = asked.and_then(|asked| match asked.completion.poll() {
                    Some(Ok(Answer::Added(device))) => Some(device.clone()),
                    _ => None,
                });
                let ask = asked.map_or_else(|| Err("C-12: no such request".to_owned()), |asked| Ok(asked.ask))?;
                if let Some(device) = added {
                    self.keep(ask.slot(), &device);
                }
                Ok(Outcome::Worked(ask, Box::new(outcome)))
            }
            (progress, news) => Err(format!("C-12: the worker says {progress:?}, answered is {news:?}")),
        }
    }
}
