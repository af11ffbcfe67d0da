//! Five subscribers on one log: they keep up, fall behind, come late, hang and hoard, and each of
//! them sees every record once, in order, and comes back to the hot tier.
//!
//! `cargo run --release --example tiers -- --help` says what there is to see and to choose.
//!
//! | file | what is in it |
//! |---|---|
//! | `input`, `flight` | the events |
//! | `producer` | the writer |
//! | `board`, `delays`, `audit`, `webhook`, `keeper` | the subscribers |
//! | `exact`, `sequence`, `shelf` | what they have in common |
//! | `scenes`, `director`, `stage` | what happens to them, and when |
//! | `cast` | who they are, and whether they got everything |
//! | `history`, `home`, `store` | what outlives a kill |

mod args;
mod audit;
mod board;
mod cast;
mod delays;
mod director;
mod display;
mod exact;
mod flight;
mod geometry;
mod history;
mod home;
mod input;
mod keeper;
mod observe;
mod producer;
mod scenes;
mod sequence;
mod shelf;
mod stage;
mod store;
mod webhook;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::Parser;
use eventplane::{Bus, ErrorKind};

use crate::args::Args;
use crate::cast::{Cast, Report};
use crate::director::Director;
use crate::display::Display;
use crate::geometry::{InRecords, PAYLOAD_BYTES_MAX};
use crate::history::History;
use crate::home::Home;
use crate::input::Input;
use crate::producer::Flow;
use crate::stage::Stage;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no verdict.
enum Exit {
    /// Bad arguments or input: status 2.
    Refused(String),
    /// Something failed: status 1.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Exit {
    fn from(error: E) -> Exit {
        Exit::Failed(error.into())
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Exit::Refused(why)) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
        Err(Exit::Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was as it should be.
fn run(args: &Args) -> Result<bool, Exit> {
    let input = Input::load(&args.input).map_err(Exit::Refused)?;
    let size = InRecords::of(&input);
    check(args, &input, &size).map_err(Exit::Refused)?;
    let on_terminal = io::stdout().is_terminal();
    observe::trace(args, on_terminal).map_err(Exit::Refused)?;
    observe::serve(args).map_err(Exit::Refused)?;
    let home = Home::open(args, &input).map_err(Exit::Refused)?;
    let bus = open(args, &home)?;
    check_recovered(args, &home, &bus)?;
    let history = History::open(&home)?;
    let stage = Arc::new(Stage { page_records: size.slab, ..Stage::default() });
    let cast = Cast::assemble(&bus, &home, &stage, &history)?;

    let flow = Arc::new(Flow::new());
    let interrupted = Arc::clone(&flow);
    ctrlc::set_handler(move || interrupted.fail("the run", &"interrupted"))?;
    let display = Display::new(args.records, on_terminal);
    let director =
        Director::new((&bus, &home), (&cast, &stage), (&flow, history), (size, args.records));
    let (history, mut problems) = perform(args, &input, director, display);
    let closed = cast.stop().and_then(|()| Ok(bus.close()?));
    if let Some(failure) = flow.failure() {
        return Err(Exit::Failed(failure.into()));
    }
    closed?;

    let mut report = cast.report(&input, args.records);
    report.results.iter().for_each(|result| println!("{result}"));
    problems.append(&mut report.problems);
    problems.append(&mut history.missing());
    problems.iter().for_each(|problem| println!("problem: {problem}"));
    if history.runs() > 1 {
        println!("scenes and transitions are those of {} runs", history.runs());
    }
    println!("{}", verdict(args, problems.is_empty(), &report, &history));
    Ok(problems.is_empty())
}

fn check(args: &Args, input: &Input, size: &InRecords) -> Result<(), String> {
    let (longest, path) = (input.longest(), args.input.display());
    if longest > PAYLOAD_BYTES_MAX {
        return Err(format!("{path} has a line of {longest} bytes, more than {PAYLOAD_BYTES_MAX}"));
    }
    let least = scenes::records_min(size);
    if args.records < least {
        let records = args.records;
        return Err(format!("the scenes need more than {records}: use --records {least}, or more"));
    }
    Ok(())
}

fn open(args: &Args, home: &Home) -> Result<Bus, Exit> {
    geometry::builder(args).open(home.log()).map_err(|error| match error.kind() {
        ErrorKind::NotALog | ErrorKind::Locked => Exit::Refused(error.to_string()),
        _ => error.into(),
    })
}

/// Nothing that was acknowledged may be missing.
fn check_recovered(args: &Args, home: &Home, bus: &Bus) -> Result<(), Exit> {
    let acknowledged = producer::acknowledged(home)?;
    let recovered = bus.committed_lsn().get();
    if acknowledged > recovered {
        let lost = format!("records {} to {acknowledged} were acknowledged", recovered + 1);
        return Err(Exit::Failed(format!("{lost} and are not in the log").into()));
    }
    if args.resume {
        let beyond = recovered - acknowledged;
        println!("resumed: {recovered} records, {acknowledged} acknowledged, {beyond} beyond");
    }
    Ok(())
}

/// Writer, acknowledger and director beside each other, the display on this thread.
fn perform(
    args: &Args,
    input: &Input,
    director: Director<'_>,
    mut display: Display,
) -> (History, Vec<String>) {
    let (bus, home, flow) = (director.bus, director.home, director.flow);
    let plan = (bus.committed_lsn().get(), args.records, args.rate);
    let done = thread::scope(|scope| {
        let (send, receive) = producer::channel();
        scope.spawn(move || {
            flow.guard("the writer", || producer::produce(bus, input, plan, flow, &send));
        });
        scope.spawn(move || {
            flow.guard("the acknowledger", || {
                producer::acknowledge(bus, home, args.durability, flow, &receive)
            });
        });
        let shown_by = thread::current();
        let directing = scope.spawn(move || {
            let done = director.direct();
            shown_by.unpark();
            done
        });
        while !directing.is_finished() {
            display.show(bus, flow);
            thread::park_timeout(display.interval());
        }
        display.show(bus, flow);
        directing.join().expect("the director does not panic")
    });
    display.finish(flow.latency_total());
    done
}

/// The last line.
fn verdict(args: &Args, good: bool, report: &Report, history: &History) -> String {
    let mut line = format!(
        "{}verified: {} consumers x {} records, {} lost, {} repeated, {} out of order; \
         transitions: {}; reasons: {}",
        if good { "" } else { "NOT " },
        cast::NAMES.len(),
        args.records,
        report.lost,
        report.repeated,
        report.out_of_order,
        history.transitions(),
        history.reasons(),
    );
    if args.resume {
        line += &format!(" redelivered={}", report.redelivered);
    }
    line
}
