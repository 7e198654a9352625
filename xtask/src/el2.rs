//! `cargo xtask el2`: the bare-metal image, built, booted under QEMU, and judged by its last line.
//!
//! The machine is QEMU's `virt` with EL2, four CPUs and functions behind root ports. While the image runs, functions are plugged
//! in and unplugged through QMP: a step waits for the line in which the image says that it is done with the one before. Or it is
//! QEMU's `xlnx-zcu102`, which has nothing in common with `virt`, and no slots.

mod build;
mod qmp;
mod size;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use qmp::Qmp;

/// What is asked for.
#[derive(Debug)]
struct Options {
    seconds: u64,
    gic: String,
    zynqmp: bool,
    size: bool,
    image: bool,
}

const EMULATOR: &str = "qemu-system-aarch64";
/// How long the scenario goes on without `--minutes`.
const SECONDS: u64 = 40;
/// Boot, start and end of a run together, on a loaded machine.
const OVERHEAD: Duration = Duration::from_secs(120);
/// How long the image may take with what was plugged in or unplugged.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two steps.
const PAUSE: Duration = Duration::from_millis(200);

/// Ports that have something in them from the start, one line each.
const FUNCTIONS: &[&[&str]] = &[
    &["-device", "e1000e,bus=port1"],
    &["-device", "virtio-net-pci,bus=port2"],
    &["-blockdev", "null-co,node-name=disk3,size=16777216", "-device", "nvme,bus=port3,serial=three,drive=disk3"],
    &[
        "-device",
        "pcie-pci-bridge,id=bridge4,bus=port4",
        "-device",
        "e1000,bus=bridge4,addr=1",
        "-device",
        "e1000,bus=bridge4,addr=2",
    ],
    &[
        "-device",
        "nvme-subsys,id=subsystem5",
        "-device",
        "nvme,bus=port5,serial=five,subsys=subsystem5,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=16,msix_qsize=17",
    ],
];
/// Ports that functions are plugged into.
const EMPTY: [&str; 2] = ["port6", "port7"];
/// What is plugged in, one after the other: a driver with its places. The function in place 0 comes last: with it the slot says
/// that something is there.
const PLUGGED: &[(&str, &[&str])] =
    &[("e1000e", &["0.0"]), ("virtio-net-pci", &["0.0"]), ("qemu-xhci", &["0.0"]), ("e1000e", &["0.1", "0.0"])];

/// Runs the subcommand; whether everything was as it must be.
pub(crate) fn run(arguments: &[&str]) -> Result<bool, String> {
    let options = parse(arguments)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    if options.size {
        return size::report(root);
    }
    let image = build::image(root, build::Profile::Release)?.image;
    if options.image {
        println!("{}", image.display());
        return Ok(true);
    }
    boot(root, &image, &options)
}

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let mut options = Options { seconds: SECONDS, gic: "3".into(), zynqmp: false, size: false, image: false };
    let mut rest = arguments.iter();
    while let Some(&argument) = rest.next() {
        let mut value = || rest.next().copied().ok_or(format!("{argument} wants a value"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match argument {
            "--minutes" => options.seconds = number(value()?)?.saturating_mul(60),
            "--seconds" => options.seconds = number(value()?)?,
            "--gic" => options.gic = value()?.to_owned(),
            "--zynqmp" => options.zynqmp = true,
            "--size" => options.size = true,
            "--image" => options.image = true,
            other => return Err(format!("cargo xtask el2 does not know {other}")),
        }
    }
    Ok(options)
}

/// A running emulator. It ends with this value.
struct Machine {
    process: Child,
    lines: Receiver<String>,
    last: String,
    folder: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn boot(root: &Path, image: &Path, options: &Options) -> Result<bool, String> {
    let mut machine = Machine::start(root, image, options)?;
    let mut qmp = Qmp::connect(&machine.folder.join("qmp"))?;
    let deadline = after(Duration::from_secs(options.seconds).saturating_add(OVERHEAD));
    let plugged = machine.until(deadline, &|line| line.starts_with("el2: ") && line.ends_with("empty slots"))?;
    if plugged {
        plug_and_unplug(&mut machine, &mut qmp, deadline)?;
    }
    // To the end of the output.
    while machine.until(deadline, &|_| false)? {}
    let last = machine.last.clone();
    drop(machine);
    judge(&last, !options.zynqmp)
}

impl Machine {
    fn start(root: &Path, image: &Path, options: &Options) -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("iommu-assign-el2-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut command = Command::new(EMULATOR);
        // The display controller has sound, which is not wanted.
        command.env("QEMU_AUDIO_DRV", "none");
        command.args(["-smp", "4", "-nodefaults", "-display", "none", "-serial", "stdio", "-nic", "none"]);
        command.args(["-append", &format!("seconds={}", options.seconds), "-kernel"]).arg(image);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", folder.join("qmp").display()));
        if options.zynqmp {
            command
                .args(["-M", "xlnx-zcu102,virtualization=on", "-m", "1024", "-dtb"])
                .arg(root.join("el2/zynqmp.dtb"));
        } else {
            let machine = format!("virt,virtualization=on,gic-version={}", options.gic);
            command.args(["-M", &machine, "-cpu", "cortex-a57", "-m", "512"]);
            // Place 1 is left free for what the machine itself may put there.
            for (number, place) in (1..=FUNCTIONS.len().saturating_add(EMPTY.len())).zip(2..) {
                command.args(["-device", &format!("pcie-root-port,id=port{number},chassis={number},addr={place}")]);
            }
            FUNCTIONS.iter().for_each(|arguments| _ = command.args(*arguments));
        }
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = started.map_err(|error| format!("{EMULATOR}: {error} (Debian: qemu-system-arm)"))?;
        let (send, lines) = channel();
        let output = process.stdout.take().ok_or("no output")?;
        std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            for line in lines {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let errors = process.stderr.take().ok_or("no output")?;
        std::thread::spawn(move || {
            // A function without a network behind it is what is wanted here.
            let lines = BufReader::new(errors).lines().map_while(Result::ok);
            lines.filter(|line| !line.contains("has no peer")).for_each(|line| eprintln!("{line}"));
        });
        Ok(Self { process, lines, last: String::new(), folder })
    }

    /// Prints what the image says until a line `is_wanted`. `false`: it ended before.
    fn until(&mut self, deadline: Instant, is_wanted: &dyn Fn(&str) -> bool) -> Result<bool, String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    // A broken standard output cannot be reported.
                    let _ = writeln!(std::io::stdout(), "{line}");
                    // What comes after the sums says nothing new.
                    if line.starts_with("el2: ") && !line.starts_with("el2: stopped") {
                        self.last.clone_from(&line);
                    }
                    if is_wanted(&line) {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => return Err("the image took too long".into()),
            }
        }
    }
}

/// Plugs in and unplugs, one slot after the other, until the image ends.
fn plug_and_unplug(machine: &mut Machine, qmp: &mut Qmp, deadline: Instant) -> Result<(), String> {
    let is_over = |line: &str| line.ends_with("violations");
    let is_about_slot = |line: &str| line.starts_with("el2: slot ");
    let next = |machine: &mut Machine| {
        let until = deadline.min(after(PATIENCE));
        let wanted = |line: &str| is_about_slot(line) || (line.starts_with("el2: ") && is_over(line));
        machine.until(until, &wanted).map(|there| there && is_about_slot(&machine.last))
    };
    let turns = PLUGGED.iter().cycle().zip(EMPTY.iter().cycle());
    for (number, ((driver, places), port)) in (0_u32..).zip(turns) {
        let names: Vec<String> =
            places.iter().map(|place| format!("plugged{number}-{}", place.replace('.', "-"))).collect();
        for (name, place) in names.iter().zip(*places) {
            let several = if places.len() > 1 { "on" } else { "off" };
            if !qmp.plug(driver, name, port, place, several)? {
                return Ok(());
            }
        }
        if !next(machine)? {
            return Ok(());
        }
        // Each third one is pulled by the image itself: it has gone with the image's line, and no event tells of it.
        let is_pulled = number % 3 == 2;
        if !is_pulled {
            std::thread::sleep(PAUSE);
            // The last one is in place 0, and takes the others with it.
            if let Some(name) = names.last()
                && !qmp.unplug(name)?
            {
                return Ok(());
            }
        }
        if !next(machine)? || (!is_pulled && !qmp.until_gone(names.len(), PATIENCE)?) {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// `el2: N operations on 4 CPUs, H hot-plug events, F faults by interrupt, 0 violations`
fn judge(last: &str, has_slots: bool) -> Result<bool, String> {
    let numbers: Vec<u64> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[operations, cpus, events, faults, violations] = numbers.as_slice() else {
        return Err(format!("the image did not come to its end: {last}"));
    };
    let all_there = operations > 0 && cpus == 4 && (events > 0) == has_slots && faults > 0;
    if !all_there {
        eprintln!("not everything happened");
    }
    Ok(all_there && violations == 0)
}

/// The moment that comes `span` from now.
fn after(span: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(span).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_decides() {
        let line = |events: u64, violations: u64| {
            format!(
                "el2: 12 operations on 4 CPUs, {events} hot-plug events, 3 faults by interrupt, {violations} violations"
            )
        };
        assert_eq!(judge(&line(5, 0), true), Ok(true));
        assert_eq!(judge(&line(5, 1), true), Ok(false));
        assert_eq!(judge(&line(0, 0), true), Ok(false), "nothing was plugged in");
        assert_eq!(judge(&line(0, 0), false), Ok(true), "a machine without slots");
        assert!(judge("el2: slot 0000:00:07.0: 1 functions unplugged", true).is_err());
        assert!(judge("", true).is_err());
    }

    #[test]
    fn options_are_read() {
        let options =
            parse(&["--minutes", "2", "--gic", "2"]).map(|options| (options.seconds, options.gic, options.zynqmp));
        assert_eq!(options, Ok((120, "2".to_owned(), false)));
        assert!(parse(&["--minutes"]).is_err());
        assert!(parse(&["--minutes", "many"]).is_err());
        assert!(parse(&["--fast"]).is_err());
    }
}
