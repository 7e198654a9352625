//! The command line.
//!
//! Read by hand: it is two words and an option, and each mistake is to be one line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cpus::{self, Plan};
use crate::error::Failure;
use crate::hotplug;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Play the scenario on a board.
    Run(Board),
    /// Play devices that come and go, for so many rounds.
    HotPlug(usize),
    /// Play the bare-metal image's scenario on threads.
    Cpus(Board, Plan),
    /// Print what a board's device tree says.
    Inspect {
        /// The board.
        board: Board,
        /// Names of nodes to which the output is limited; none for all.
        only: Vec<String>,
        /// How.
        form: Form,
    },
}

/// How `inspect` shows a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people at a terminal.
    Text,
    /// For programs.
    Json,
    /// A page, in this file.
    Page(PathBuf),
}

/// Where a device tree comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Board {
    /// The one that is built in.
    Showcase,
    /// A blob in this file.
    File(PathBuf),
}

/// What `--help` prints.
pub(crate) const HELP: &str = "\
A small hypervisor on a modelled board: devices assigned and isolated by iommu-assign.

Usage:
  prototype                          play the scenario on a built-in board
  prototype run BOARD.dtb            the same on any board with an SMMUv1/v2
  prototype hotplug [ROUNDS]         three threads on one SMMU: functions and virtual functions come
                                     and go, overlays are applied and reverted, guests take what is
                                     there
  prototype cpus [--seconds N] [--cpus N] [BOARD.dtb]
                                     the bare-metal image's scenario on threads: each CPU gives
                                     devices to guests and takes them back, with timer interrupts
                                     and a storm; the log goes to standard error
  prototype inspect [--json | --html FILE] BOARD.dtb [NAME...]
                                     what of a board may be assigned and what ties it together, its
                                     SMMUs, host bridges and MSI doorbells: for people, as JSON, or
                                     as a page in FILE; all of it, or the nodes of these names

Options:
  -h, --help       this text
  -V, --version    the version

Exit status: 0 when all that was expected held, 1 when something did not (for inspect: when
nodes were refused; the rest is shown), 2 for an error.
";

/// Reads the arguments after the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let mut words: Vec<OsString> = Vec::new();
    let mut form = Form::Text;
    let mut plan: Option<Plan> = None;
    let mut only_words = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            _ if only_words => words.push(argument),
            Some("--") => only_words = true,
            Some("-h" | "--help") => return Ok(Command::Help),
            Some("-V" | "--version") => return Ok(Command::Version),
            Some("--json") => form = Form::Json,
            Some("--html") => match arguments.next() {
                Some(file) => form = Form::Page(file.into()),
                None => return Err(wrong("`--html` needs the name of a file to write")),
            },
            Some("--seconds") => {
                let seconds = number(arguments.next(), "seconds", u64::MAX / 1_000_000)?;
                plan.get_or_insert(cpus::PLAN).seconds = seconds;
            }
            Some("--cpus") => plan.get_or_insert(cpus::PLAN).cpus = number(arguments.next(), "CPUs", cpus::MOST)?,
            _ if argument.as_encoded_bytes().starts_with(b"-") => {
                return Err(wrong(format!("unknown option `{}`", argument.to_string_lossy())));
            }
            _ => words.push(argument),
        }
    }
    let mut words = words.into_iter();
    let Some(command) = words.next() else {
        let run = Command::Run(Board::Showcase);
        return if form != Form::Text { Err(form_is_for_inspect(&form)) } else { without_plan(plan, run) };
    };
    let command = command.to_string_lossy();
    let board = words.next();
    let only: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(word) = only.first().filter(|_| command != "inspect") {
        return Err(wrong(format!("unexpected argument `{word}`")));
    }
    let file = |board: Option<OsString>| match board {
        Some(path) => Ok(Board::File(path.into())),
        None => Err(wrong(format!("`{command}` needs the file name of a device tree blob"))),
    };
    match &*command {
        "inspect" => without_plan(plan, Command::Inspect { board: file(board)?, only, form }),
        "cpus" | "hotplug" | "run" if form != Form::Text => Err(form_is_for_inspect(&form)),
        "cpus" => {
            let board = board.map_or(Board::Showcase, |path| Board::File(path.into()));
            Ok(Command::Cpus(board, plan.unwrap_or(cpus::PLAN)))
        }
        "hotplug" => without_plan(plan, rounds(board)?),
        "run" => without_plan(plan, Command::Run(file(board)?)),
        command => Err(wrong(format!("unknown command `{command}`"))),
    }
}

/// How many rounds, at least one.
fn rounds(word: Option<OsString>) -> Result<Command, Failure> {
    let Some(word) = word else { return Ok(Command::HotPlug(hotplug::ROUNDS)) };
    let word = word.to_string_lossy();
    let rounds = word.parse().ok().filter(|rounds| *rounds > 0);
    rounds.map(Command::HotPlug).ok_or_else(|| wrong(format!("`{word}` is no number of rounds")))
}

/// The value of an option, at least one and no more than `most`.
fn number<T: FromStr + PartialOrd + From<u8>>(word: Option<OsString>, what: &str, most: T) -> Result<T, Failure> {
    let word = word.unwrap_or_default();
    let word = word.to_string_lossy();
    let number = word.parse().ok().filter(|number| T::from(1) <= *number && *number <= most);
    number.ok_or_else(|| wrong(format!("`{word}` is no number of {what}")))
}

/// The command, where no option is given that only `cpus` has.
fn without_plan(plan: Option<Plan>, command: Command) -> Result<Command, Failure> {
    if plan.is_some() { Err(wrong("`--seconds` and `--cpus` are options of `cpus`")) } else { Ok(command) }
}

fn form_is_for_inspect(form: &Form) -> Failure {
    wrong(format!("`{}` is an option of `inspect`", if *form == Form::Json { "--json" } else { "--html" }))
}

fn wrong(what: impl AsRef<str>) -> Failure {
    Failure::new(format!("{} (see --help)", what.as_ref()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, Failure> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn file(name: &str) -> Board {
        Board::File(name.into())
    }

    fn inspect(board: &str, only: &[&str], form: Form) -> Command {
        Command::Inspect { board: file(board), only: only.iter().map(|name| (*name).to_owned()).collect(), form }
    }

    #[test]
    fn commands_are_understood_with_options_anywhere() {
        assert_eq!(parsed("").unwrap(), Command::Run(Board::Showcase));
        assert_eq!(parsed("run a.dtb").unwrap(), Command::Run(file("a.dtb")));
        for line in ["inspect --json a.dtb", "inspect a.dtb --json", "--json inspect a.dtb"] {
            assert_eq!(parsed(line).unwrap(), inspect("a.dtb", &[], Form::Json));
        }
        assert_eq!(parsed("inspect -- --json").unwrap(), inspect("--json", &[], Form::Text));
        assert_eq!(parsed("inspect a.dtb x a//b").unwrap(), inspect("a.dtb", &["x", "a//b"], Form::Text));
        let page = Form::Page("b.html".into());
        assert_eq!(parsed("inspect --html b.html a.dtb").unwrap(), inspect("a.dtb", &[], page));
        assert_eq!(parsed("run --help").unwrap(), Command::Help);
        assert_eq!(parsed("hotplug").unwrap(), Command::HotPlug(hotplug::ROUNDS));
        assert_eq!(parsed("hotplug 7").unwrap(), Command::HotPlug(7));
        assert_eq!(parsed("cpus").unwrap(), Command::Cpus(Board::Showcase, cpus::PLAN));
        let plan = Plan { seconds: 3, cpus: 2 };
        assert_eq!(parsed("cpus a.dtb --seconds 3 --cpus 2").unwrap(), Command::Cpus(file("a.dtb"), plan));
        assert_eq!(parsed("-V").unwrap(), Command::Version);
    }

    #[test]
    fn each_mistake_is_one_line_that_names_it() {
        let cases = [
            ("run", "`run` needs the file name of a device tree blob (see --help)"),
            ("inspect --json", "`inspect` needs the file name of a device tree blob (see --help)"),
            ("run a b", "unexpected argument `b` (see --help)"),
            ("walk a", "unknown command `walk` (see --help)"),
            ("run --fast a", "unknown option `--fast` (see --help)"),
            ("hotplug fast", "`fast` is no number of rounds (see --help)"),
            ("hotplug 0", "`0` is no number of rounds (see --help)"),
            ("hotplug 1 2", "unexpected argument `2` (see --help)"),
            ("hotplug --json", "`--json` is an option of `inspect` (see --help)"),
            ("cpus --seconds", "`` is no number of seconds (see --help)"),
            ("cpus --cpus 65", "`65` is no number of CPUs (see --help)"),
            ("cpus a b", "unexpected argument `b` (see --help)"),
            ("run a --cpus 2", "`--seconds` and `--cpus` are options of `cpus` (see --help)"),
            ("-j", "unknown option `-j` (see --help)"),
            ("run a --json", "`--json` is an option of `inspect` (see --help)"),
            ("--json", "`--json` is an option of `inspect` (see --help)"),
            ("run a --html b", "`--html` is an option of `inspect` (see --help)"),
            ("inspect a --html", "`--html` needs the name of a file to write (see --help)"),
        ];
        for (line, message) in cases {
            assert_eq!(parsed(line).unwrap_err().to_string(), message, "{line}");
        }
    }
}
