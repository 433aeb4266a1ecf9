//! `dashboard`: one node or several, live on a terminal.
//!
//! [`sample`] makes rates of two answers, [`state`] keeps what is known and says what to ask next,
//! [`view`] draws it; all three are pure. Here is what does it: each question is a call of its own
//! over one connection, so that neither a slow call nor a slow node holds anything up, least of all
//! the keys.

mod sample;
mod state;
mod view;

use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use orlop_proto::machine::DmesgRequest;
use orlop_rt::Chain;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tonic::{Response, Status};

use crate::client::{Answer, Client, Node, Reply, machine};
use crate::error::Error;
use crate::paint;
use crate::units::parse_duration;
use sample::Piece;
use state::{Flow, Key, Question, State};
use view::{Now, Paint};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How often nodes are asked
    #[arg(short = 'd', long, value_parser = parse_duration, default_value = "3s", value_name = "DURATION")]
    update_interval: Duration,
}

/// How often it is looked whether something is to be asked; what is shown ages at least as often.
const TICK: Duration = Duration::from_millis(250);
/// Least time between two frames: a burst of log lines is one frame.
const FRAME: Duration = Duration::from_millis(40);
/// When a log that broke off is asked for again.
const LOG_RETRY: Duration = Duration::from_secs(5);
/// Keys and pieces of log that wait while a frame is drawn; a log that is faster waits at the node.
const AHEAD: usize = 64;

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Error::NoTerminal);
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let clients = client.each();
    let names = clients.iter().flat_map(Client::nodes);
    let mut state = State::new(names, options.update_interval);
    let paint = if paint::wanted(&io::stdout()) { Paint::Colour } else { Paint::Plain };

    let mut screen = Screen::open().map_err(Error::Screen)?;
    let mut inputs = inputs();
    let (logged, mut log) = mpsc::channel(AHEAD);
    let mut following = Box::pin(follow(&clients[0], 0, logged.clone()));
    let mut calls = FuturesUnordered::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = Instant::now();
    let mut next_frame = start;
    let mut changed = true;
    loop {
        if changed && Instant::now() >= next_frame {
            let now = Now { elapsed: start.elapsed(), wall: SystemTime::now() };
            let draw = |frame: &mut Frame<'_>| view::draw(frame, &state, now, paint);
            screen.terminal.draw(draw).map_err(Error::Screen)?;
            next_frame = Instant::now() + FRAME;
            changed = false;
        }
        for (at, question) in state.due(start.elapsed()) {
            let client = &clients[at];
            calls.push(async move { (at, question, ask(client, question).await) });
        }
        // Every arm is safe to cancel: what was not received stays where it is.
        tokio::select! {
            () = sleep_until(next_frame), if changed => continue,
            _ = tick.tick() => {}
            Some((at, question, answer)) = calls.next() => {
                state.answer(at, question, start.elapsed(), answer);
            }
            Some(piece) = log.recv() => match piece {
                Log::Begins(at) => state.log_begins(at),
                Log::Piece(at, bytes) => state.log(at, &bytes),
            },
            never = &mut following => match never {},
            input = inputs.recv() => {
                let key = match input {
                    Some(Input::Key(key)) => key,
                    Some(Input::Resized) => {
                        changed = true;
                        continue;
                    }
                    Some(Input::Gone(source)) => return Err(Error::Screen(source)),
                    None => return Ok(()),
                };
                let before = state.selected;
                if state.key(key) == Flow::Quit {
                    return Ok(());
                }
                let at = state.selected;
                if at != before {
                    following = Box::pin(follow(&clients[at], at, logged.clone()));
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        changed = true;
    }
}

/// The terminal in our hands: raw, on its other page. It is given back when this is dropped, and
/// before a panic is told.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                ratatui::restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What comes from the terminal.
enum Input {
    Key(Key),
    /// It has another size.
    Resized,
    Gone(io::Error),
}

/// Reads the terminal in a thread of its own, which ends with the process.
fn inputs() -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    thread::spawn(move || {
        loop {
            let input = match event::read() {
                Ok(Event::Key(pressed)) if pressed.kind == KeyEventKind::Press => {
                    match key(pressed.code, pressed.modifiers) {
                        Some(key) => Input::Key(key),
                        None => continue,
                    }
                }
                Ok(Event::Resize(..)) => Input::Resized,
                Ok(_) => continue,
                Err(error) => Input::Gone(error),
            };
            let last = matches!(input, Input::Gone(_));
            if sender.blocking_send(input).is_err() || last {
                return;
            }
        }
    });
    receiver
}

fn key(code: KeyCode, with: KeyModifiers) -> Option<Key> {
    Some(match code {
        KeyCode::Char('c') if with.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Right | KeyCode::Tab | KeyCode::Char('l') => Key::NextNode,
        KeyCode::Left | KeyCode::BackTab | KeyCode::Char('h') => Key::PreviousNode,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::End | KeyCode::Char('G') => Key::End,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char(digit) => Key::Node(digit.to_digit(10)?.checked_sub(1)?.try_into().ok()?),
        _ => return None,
    })
}

/// Asks one node one question.
async fn ask(client: &Client, question: Question) -> Result<Piece, String> {
    let what = match question {
        Question::Version => "read the version",
        Question::Load => "read the load",
        Question::Memory => "read memory",
        Question::Stat => "read the processors' time",
        Question::Network => "read the links' counters",
        Question::Disks => "read the disks' counters",
        Question::Processes => "list processes",
        Question::Services => "list services",
    };
    Ok(match question {
        Question::Version => {
            let said = one(client, what, async |node| machine(node).version(()).await).await?;
            Piece::Version(said.version.unwrap_or_default().tag)
        }
        Question::Load => {
            Piece::Load(one(client, what, async |node| machine(node).load_avg(()).await).await?)
        }
        Question::Memory => {
            let said = one(client, what, async |node| machine(node).memory(()).await).await?;
            Piece::Memory(Box::new(said.meminfo.unwrap_or_default()))
        }
        Question::Stat => {
            let call = async |node| machine(node).system_stat(()).await;
            Piece::Stat(Box::new(one(client, what, call).await?))
        }
        Question::Network => {
            let call = async |node| machine(node).network_device_stats(()).await;
            Piece::Network(one(client, what, call).await?.devices)
        }
        Question::Disks => {
            let call = async |node| machine(node).disk_stats(()).await;
            Piece::Disks(one(client, what, call).await?.devices)
        }
        Question::Processes => {
            let call = async |node| machine(node).processes(()).await;
            Piece::Processes(one(client, what, call).await?.processes)
        }
        Question::Services => {
            let call = async |node| machine(node).service_list(()).await;
            Piece::Services(one(client, what, call).await?.services)
        }
    })
}

/// The answer of the one node that `client` means.
async fn one<R: Reply>(
    client: &Client,
    what: &str,
    call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
) -> Result<R::Message, String> {
    let (answers, failures) =
        client.gather(what, call).await.map_err(|error| Chain(&error).to_string())?;
    match answers.into_iter().next() {
        Some(Answer { message, .. }) => Ok(message),
        None => Err(failures.first().map_or("it said nothing".to_owned(), |f| f.why.clone())),
    }
}

/// A node's log: it begins, again after it broke off, and goes on.
enum Log {
    Begins(usize),
    Piece(usize, Vec<u8>),
}

/// Follows the log of a node for as long as it is asked to.
async fn follow(client: &Client, at: usize, log: mpsc::Sender<Log>) -> Infallible {
    loop {
        // The dashboard that receives this also polls it: it is there.
        let _ = log.send(Log::Begins(at)).await;
        let request = DmesgRequest { follow: true, tail: false };
        let call = async |node| machine(node).dmesg(request).await;
        let ended = client
            .stream("read the kernel's log", call, async |said| {
                let bytes = match said {
                    Ok(Answer { message, .. }) => message.bytes,
                    Err(failure) => format!("{failure}\n").into_bytes(),
                };
                let _ = log.send(Log::Piece(at, bytes)).await;
                Ok(())
            })
            .await;
        if let Err(error) = ended {
            let _ = log.send(Log::Piece(at, format!("{}\n", Chain(&error)).into_bytes())).await;
        }
        sleep(LOG_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_pagers_and_editors() {
        let plain = |code| key(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(plain(KeyCode::Char('3')), Some(Key::Node(2)));
        assert_eq!(plain(KeyCode::Char('0')), None);
        assert_eq!(plain(KeyCode::Tab), Some(Key::NextNode));
    }
}
