//! What the process under test tells before it dies: messages on a pipe, which outlives it.
//!
//! A message is written with one call and is far below `PIPE_BUF`, so it is whole or not there, and
//! messages of several threads do not mix.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

use serde::{Deserialize, Serialize};

/// What the child is to do, handed over in the environment.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) dir: String,
    pub(crate) life: u64,
    pub(crate) seed: u64,
    pub(crate) io_uring: bool,
    pub(crate) direct_io: bool,
    /// Some blocks are so large that they go through the write queue.
    pub(crate) large: bool,
    /// Commits are acknowledged by `Bus::sync`.
    pub(crate) deferred: bool,
    pub(crate) retention: bool,
    pub(crate) plant: Option<Plant>,
}

/// A bug of the process under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Plant {
    /// Acknowledges what nobody waited for.
    AcknowledgeEarly,
    /// Lets the bus believe that a batch is processed before it is.
    ConsumeEarly,
    /// Commits what it says it abandoned.
    CommitAbandoned,
    /// Finds its checkpoints gone when it starts.
    LoseCheckpoints,
    /// Takes it for durable what was only written: syncs succeed without doing anything.
    SkipSyncs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// The log is open; the last record found.
    Opened { last: u64 },
    /// A batch is acknowledged.
    Acknowledged {
        producer: u64,
        sequence: u64,
        first: u64,
        last: u64,
    },
    /// A callback begins; `print` is that of the records' identities.
    Delivered {
        consumer: u64,
        first: u64,
        last: u64,
        print: u64,
    },
    /// A callback is about to return, having processed up to and including `last`.
    Processed { consumer: u64, last: u64 },
    /// The file of checkpoints was seen to be another one than before.
    Stored,
    /// A producer was refused, and ends.
    Refused { producer: u64, kind: u64 },
}

const WORDS: usize = 5;
const BYTES: usize = 8 * WORDS;

impl Message {
    fn words(self) -> [u64; WORDS] {
        match self {
            Message::Opened { last } => [1, last, 0, 0, 0],
            Message::Acknowledged { producer, sequence, first, last } => {
                [2, producer, sequence, first, last]
            }
            Message::Delivered { consumer, first, last, print } => {
                [3, consumer, first, last, print]
            }
            Message::Processed { consumer, last } => [4, consumer, last, 0, 0],
            Message::Stored => [5, 0, 0, 0, 0],
            Message::Refused { producer, kind } => [6, producer, kind, 0, 0],
        }
    }

    fn of([tag, a, b, c, d]: [u64; WORDS]) -> Message {
        match tag {
            1 => Message::Opened { last: a },
            2 => Message::Acknowledged { producer: a, sequence: b, first: c, last: d },
            3 => Message::Delivered { consumer: a, first: b, last: c, print: d },
            4 => Message::Processed { consumer: a, last: b },
            5 => Message::Stored,
            6 => Message::Refused { producer: a, kind: b },
            _ => panic!("no message has the tag {tag}"),
        }
    }
}

/// The child's end: its standard *input*, since the test runner has the other two.
pub(crate) struct Teller(File);

impl Teller {
    pub(crate) fn of_this_process() -> Teller {
        // SAFETY: descriptor 0 is the pipe that `spawn` put there, and nothing else here uses it.
        Teller(unsafe { File::from_raw_fd(0) })
    }

    /// Says it. If nobody listens any more there is nobody to go on for either.
    pub(crate) fn say(&self, message: Message) {
        let mut bytes = [0; BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(message.words()) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        if (&self.0).write_all(&bytes).is_err() {
            std::process::exit(1);
        }
    }
}

/// The next message, or `None` when everybody who could write one is gone.
pub(crate) fn hear(pipe: &mut impl Read) -> Option<Message> {
    let mut bytes = [0; BYTES];
    match pipe.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return None,
        Err(e) => panic!("the pipe: {e}"),
    }
    let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
    Some(Message::of([word(0), word(1), word(2), word(3), word(4)]))
}
