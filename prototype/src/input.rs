//! Blobs from files, and the one that is built in.

use std::fs::File;
use std::io::Read;

use crate::args::Board;
use crate::error::Failure;

/// The built-in board.
const SHOWCASE: &[u8] = include_bytes!("../../boards/showcase.dtb");

/// Larger than any device tree: a file above is something else, and may have no end.
const MAX_BYTES: u64 = 64 << 20;

/// The blob of a board.
pub(crate) fn read(board: &Board) -> Result<Vec<u8>, Failure> {
    let Board::File(path) = board else { return Ok(SHOWCASE.to_vec()) };
    let failed = |what: String| Failure::new(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut blob = Vec::new();
    // One byte more than allowed tells a file of the limit's size from a larger one.
    let read = file.take(MAX_BYTES.saturating_add(1)).read_to_end(&mut blob);
    let read = read.map_err(|error| failed(error.to_string()))?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_BYTES) {
        return Err(failed(format!("no device tree blob: larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(blob)
}

/// What messages call a board.
pub(crate) fn name(board: &Board) -> String {
    match board {
        Board::Showcase => "built-in board".to_owned(),
        Board::File(path) => path.display().to_string(),
    }
}
