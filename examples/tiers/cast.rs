//! The five subscribers, and what is asked of them at the end.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use eventplane::{Bus, Subscription};

use crate::Failure;
use crate::audit::{self, Audit};
use crate::board::{self, Board};
use crate::delays::{self, Delays};
use crate::exact::{Exact, Ledger, Shared, Work, lock};
use crate::history::History;
use crate::home::Home;
use crate::input::Input;
use crate::keeper::{self, Keeper};
use crate::scenes;
use crate::sequence::Sequence;
use crate::stage::Stage;
use crate::webhook::{self, Accepted, Endpoint};

pub(crate) const NAMES: [&str; 5] =
    [Board::NAME, Delays::NAME, Audit::NAME, webhook::NAME, Keeper::NAME];

pub(crate) struct Cast {
    board: Shared<Ledger<Board>>,
    delays: Shared<Ledger<Delays>>,
    /// Comes late.
    audit: Mutex<Option<Shared<Ledger<Audit>>>>,
    endpoint: Shared<Endpoint>,
    keeper: Shared<Ledger<Keeper>>,
    subscriptions: Mutex<Vec<Subscription>>,
}

/// What the subscribers have seen, all together, and what is wrong with it.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) results: Vec<String>,
    pub(crate) problems: Vec<String>,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) out_of_order: u64,
    pub(crate) redelivered: u64,
}

impl Cast {
    /// Subscribes all but the audit; that too, if its scene has played in an earlier run.
    pub(crate) fn assemble(
        bus: &Bus,
        home: &Home,
        stage: &Arc<Stage>,
        history: &History,
    ) -> Result<Cast, Failure> {
        let (board, ledger) = board::subscribe(bus, home, stage)?;
        let (delays, delays_ledger) = delays::subscribe(bus, home, stage)?;
        let (webhook, endpoint) = webhook::subscribe(bus, home, stage)?;
        let (keeper, keeper_ledger) = keeper::subscribe(bus, home, stage)?;
        let cast = Cast {
            board: ledger,
            delays: delays_ledger,
            audit: Mutex::default(),
            endpoint,
            keeper: keeper_ledger,
            subscriptions: Mutex::new(vec![board, delays, webhook, keeper]),
        };
        if history.has_played(scenes::LATE) {
            cast.enter_audit(bus, home, stage)?;
        } else {
            Exact::<Audit>::forget(home)?;
        }
        Ok(cast)
    }

    pub(crate) fn enter_audit(
        &self,
        bus: &Bus,
        home: &Home,
        stage: &Arc<Stage>,
    ) -> Result<(), Failure> {
        let (subscription, ledger) = audit::subscribe(bus, home, stage)?;
        *lock(&self.audit) = Some(ledger);
        lock(&self.subscriptions).push(subscription);
        Ok(())
    }

    /// Ends all; their callbacks have returned and their state is stored.
    pub(crate) fn stop(&self) -> Result<(), Failure> {
        for subscription in lock(&self.subscriptions).drain(..) {
            subscription.stop()?;
        }
        Ok(())
    }

    /// Compares everything with the file.
    pub(crate) fn report(&self, input: &Input, records: u64) -> Report {
        let mut report = Report::default();
        report.ledger(&lock(&self.board), input, records);
        report.ledger(&lock(&self.delays), input, records);
        match &*lock(&self.audit) {
            Some(audit) => report.ledger(&lock(audit), input, records),
            None => report.ledger(&Ledger::<Audit>::default(), input, records),
        }
        report.endpoint(&lock(&self.endpoint), input, records);
        report.ledger(&lock(&self.keeper), input, records);
        report
    }
}

impl Report {
    fn ledger<W: Work>(&mut self, ledger: &Ledger<W>, input: &Input, records: u64) {
        self.sequence(W::NAME, &ledger.sequence, records);
        let expected = W::expected(input, records);
        self.result(W::NAME, ledger.work.summary(), ledger.work == expected, expected.summary());
    }

    fn endpoint(&mut self, endpoint: &Endpoint, input: &Input, records: u64) {
        let (memory, most) = (&endpoint.memory, endpoint.redelivered_max);
        self.sequence(webhook::NAME, &memory.sequence, records);
        let expected = Accepted::expected(input, records);
        let (found, agrees) = (memory.accepted.summary(), memory.accepted == expected);
        self.result(webhook::NAME, found, agrees, expected.summary());
        let redelivered = memory.sequence.redelivered;
        if redelivered > most {
            self.problems.push(format!(
                "webhook: {redelivered} records came again, more than the {most} of the last \
                 checkpoint intervals"
            ));
        }
    }

    fn sequence(&mut self, name: &str, sequence: &Sequence, records: u64) {
        let (lost, repeated) = (sequence.lost(records), sequence.repeated);
        let out_of_order = sequence.out_of_order;
        if sequence.last() > records {
            self.problems.push(format!("{name} saw LSN {}, beyond the last", sequence.last()));
        }
        if lost + repeated + out_of_order > 0 {
            self.problems.push(format!(
                "{name}: {lost} lost, {repeated} repeated, {out_of_order} out of order"
            ));
        }
        self.lost += lost;
        self.repeated += repeated;
        self.out_of_order += out_of_order;
        self.redelivered += sequence.redelivered;
    }

    fn result(&mut self, name: &str, found: String, agrees: bool, expected: impl Display) {
        if agrees {
            self.results.push(format!("{name:<8} {found}"));
        } else {
            self.problems.push(format!("{name}: {found}; from the file: {expected}"));
        }
    }
}
