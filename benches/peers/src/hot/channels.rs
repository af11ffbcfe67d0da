//! Channels that hand out counted references: one allocation a record, one reference a reader.

use std::hint;

use bytes::Bytes;
use crossbeam_channel as crossbeam;
use tokio::sync::broadcast;

use super::policy::{POLLS, Policy, System};
use super::race::{Inlet, Job, Outlet, POLL_MAX, Reader, Timing, drain};

pub const TOKIO: System =
    System { label: "tokio broadcast of Bytes", policies: &POLLS, run: by_broadcast };
pub const CROSSBEAM: System =
    System { label: "a crossbeam channel of Bytes each", policies: &POLLS, run: by_fan_out };

/// As many places as a ring of payloads has.
fn places(job: &Job) -> usize {
    (job.ring_bytes as f64 / job.load.mean_bytes(|payload| payload)) as usize
}

fn by_broadcast(job: &Job, policy: Policy) -> anyhow::Result<Timing> {
    let (sender, first) = broadcast::channel(places(job));
    let (readers, race) = job.prepare(Some(places(job) as u64 / 2));
    let more = (1..job.readers).map(|_| sender.subscribe()).collect::<Vec<_>>();
    let receivers = std::iter::once(first).chain(more);
    let mut inlets: Vec<_> = receivers.zip(readers).map(|(r, reader)| Inbox(r, reader)).collect();
    race.run(Broadcast(sender), move |watch| drain(&mut inlets, policy.pauses, watch))
}

struct Broadcast(broadcast::Sender<Bytes>);

impl Outlet for Broadcast {
    fn publish<'l>(
        &mut self,
        records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()> {
        for payload in records {
            self.0.send(Bytes::copy_from_slice(payload))?;
        }
        Ok(())
    }
}

fn by_fan_out(job: &Job, policy: Policy) -> anyhow::Result<Timing> {
    let (readers, race) = job.prepare(None);
    let (mut senders, mut inlets) = (Vec::new(), Vec::new());
    for reader in readers {
        let (sender, receiver) = crossbeam::bounded(places(job));
        senders.push(sender);
        inlets.push(Inbox(receiver, reader));
    }
    race.run(FanOut(senders), move |watch| drain(&mut inlets, policy.pauses, watch))
}

struct FanOut(Vec<crossbeam::Sender<Bytes>>);

impl Outlet for FanOut {
    fn publish<'l>(
        &mut self,
        records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()> {
        for payload in records {
            let payload = Bytes::copy_from_slice(payload);
            for sender in &self.0 {
                let mut again = Some(payload.clone());
                while let Some(payload) = again.take() {
                    match sender.try_send(payload) {
                        Ok(()) => {}
                        Err(crossbeam::TrySendError::Full(payload)) => {
                            again = Some(payload);
                            hint::spin_loop();
                        }
                        Err(gone) => return Err(gone.into()),
                    }
                }
            }
        }
        Ok(())
    }
}

/// What both kinds of receivers can do.
trait Receive: Send {
    fn receive(&mut self) -> Option<Bytes>;
}

impl Receive for broadcast::Receiver<Bytes> {
    /// A receiver that was lapped is told so once; then its next record is not the expected one.
    #[inline]
    fn receive(&mut self) -> Option<Bytes> {
        self.try_recv().ok()
    }
}

impl Receive for crossbeam::Receiver<Bytes> {
    #[inline]
    fn receive(&mut self) -> Option<Bytes> {
        self.try_recv().ok()
    }
}

struct Inbox<R>(R, Reader);

impl<R: Receive> Inlet for Inbox<R> {
    #[inline]
    fn poll(&mut self) -> usize {
        let mut taken = 0;
        while taken < POLL_MAX
            && let Some(payload) = self.0.receive()
        {
            self.1.take(&payload);
            taken += 1;
        }
        self.1.batch_ends();
        taken
    }
}
