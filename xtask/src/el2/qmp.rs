//! QEMU's machine protocol, as far as hot-plug needs it: one JSON object on each line.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::after;

/// A connection.
pub(crate) struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// Devices that have gone since they were last asked for.
    gone: usize,
}

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(10);

impl Qmp {
    /// Connects to an emulator that has just been started.
    pub(crate) fn connect(path: &Path) -> Result<Self, String> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if start.elapsed() < CONNECT => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => return Err(format!("QMP: {error}")),
            }
        };
        let lines = BufReader::new(stream.try_clone().map_err(|error| format!("QMP: {error}"))?);
        let mut qmp = Self { stream, lines, gone: 0 };
        // The greeting, then the one command that must come first.
        qmp.read(after(ANSWER))?;
        qmp.command("qmp_capabilities", json!({}))?.ok_or("QMP: the emulator ended")?;
        Ok(qmp)
    }

    /// Plugs in a function. `false`: the emulator has ended.
    pub(crate) fn plug(
        &mut self,
        driver: &str,
        id: &str,
        bus: &str,
        addr: &str,
        several: &str,
    ) -> Result<bool, String> {
        let arguments = json!({ "driver": driver, "id": id, "bus": bus, "addr": addr, "multifunction": several });
        self.command("device_add", arguments).map(|answer| answer.is_some())
    }

    /// Presses the button of the slot that the function is in. `false`: the emulator has ended.
    pub(crate) fn unplug(&mut self, id: &str) -> Result<bool, String> {
        self.command("device_del", json!({ "id": id })).map(|answer| answer.is_some())
    }

    /// Waits until so many devices have gone. `false`: the emulator has ended.
    pub(crate) fn until_gone(&mut self, count: usize, patience: Duration) -> Result<bool, String> {
        let deadline = after(patience);
        while self.gone < count {
            if self.read(deadline)?.is_none() {
                return Ok(false);
            }
        }
        self.gone = 0;
        Ok(true)
    }

    fn command(&mut self, name: &str, arguments: Value) -> Result<Option<Value>, String> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string();
        if writeln!(self.stream, "{line}").is_err() {
            return Ok(None);
        }
        let deadline = after(ANSWER);
        loop {
            let Some(answer) = self.read(deadline)? else { return Ok(None) };
            if let Some(error) = answer.get("error") {
                return Err(format!("QMP: {name}: {error}"));
            }
            if answer.get("return").is_some() {
                return Ok(Some(answer));
            }
        }
    }

    /// The next object; events of devices that have gone are counted.
    fn read(&mut self, deadline: Instant) -> Result<Option<Value>, String> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).map_err(|error| format!("QMP: {error}"))?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => {
                let value: Value = serde_json::from_str(&line).map_err(|error| format!("QMP: {error}: {line}"))?;
                let is_gone = value.get("event").and_then(Value::as_str) == Some("DEVICE_DELETED");
                // An event without a name is of something inside a device.
                if is_gone && value.pointer("/data/device").is_some() {
                    self.gone = self.gone.saturating_add(1);
                }
                Ok(Some(value))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err("QMP: no answer in time".into())
            }
            Err(_) => Ok(None),
        }
    }
}
