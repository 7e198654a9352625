//! A small hypervisor on a modelled board: it links the library as any hypervisor would, and shows what that does.
//!
//! Without an argument it takes a board of its own; see [`args`] for the rest. It ends with status 0 when all that it
//! expected was so, 1 when something was not, and 2 with one line of error when it could not begin.
//!
//! The way of a board through it: [`input`] reads the blob, [`world`] makes a machine of it ([`machine::part_of`] chooses the
//! parts, [`pci_world`] plugs cards in), [`cast`] chooses who plays which part, [`scenario`] plays, [`stage`] and [`dma`]
//! carry out each step and compare it with what it [`must`] come to, [`watch`] looks at each register write, [`recorder`] keeps the score and [`report`] sets
//! the lines. [`inspect`] needs no machine, and [`hotplug`] and [`cpus`] have one of their own.

mod args;
mod cast;
mod cpus;
mod dma;
mod doorbells;
mod error;
mod guests;
mod hooks;
mod hotplug;
mod input;
mod inspect;
mod must;
mod names;
mod overview;
mod pci_world;
mod policy;
mod presets;
mod recorder;
mod report;
mod scenario;
mod stage;
mod watch;
mod world;

use std::io::{self, Write};
use std::process::ExitCode;

use args::{Board, Command, Form};
use error::Failure;
use recorder::Recorder;
use report::Page;

fn main() -> ExitCode {
    let command = args::parse(std::env::args_os().skip(1));
    let played = command.and_then(|command| play(&command)).and_then(|(page, status)| {
        print(&page)?;
        Ok(status)
    });
    match played {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Nobody is left to be told when even this cannot be written.
            let _ = writeln!(io::stderr(), "prototype: {failure}");
            ExitCode::from(error::STATUS)
        }
    }
}

/// Carries out a command: what it prints, and its exit status.
fn play(command: &Command) -> Result<(String, u8), Failure> {
    Ok(match command {
        Command::Help => (args::HELP.to_owned(), 0),
        Command::Version => (format!("prototype {}\n", env!("CARGO_PKG_VERSION")), 0),
        Command::Inspect { board, only, form } => {
            let blob = input::read(board)?;
            let mut inspection = inspect::Inspection::of(&blob, &input::name(board))?;
            if !only.is_empty() {
                inspection.only(only)?;
            }
            let text = match form {
                Form::Text => inspect::text::page(&inspection),
                Form::Json => inspection.json()?,
                Form::Page(file) => {
                    let page = inspect::html::page(&inspection);
                    let written = std::fs::write(file, page);
                    written.map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
                    format!("{}\n", report::printable(&format!("{}: written", file.display())))
                }
            };
            // The rest is shown, and who asks in a script hears of the bad nodes.
            (text, u8::from(!inspection.refused.is_empty()))
        }
        Command::HotPlug(rounds) => hotplug::play(*rounds)?,
        Command::Cpus(board, plan) => cpus::play(board, *plan)?,
        Command::Run(board) => run(board)?,
    })
}

fn run(board: &Board) -> Result<(String, u8), Failure> {
    let blob = input::read(board)?;
    let name = input::name(board);
    let mut page = Page::new();
    let mut world = world::World::build(&blob, &name, matches!(board, Board::Showcase))?;
    overview::print(&mut page, &world);
    let mut recorder = Recorder::new(page);
    scenario::play(&mut world, &mut recorder);
    Ok(recorder.finish())
}

/// Everything at once and at the end: a run that fails in the middle has printed nothing that looks like a result.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Failure::new(format!("standard output: {error}"))),
    }
}
