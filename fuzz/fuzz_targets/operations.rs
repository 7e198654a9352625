//! Any sequence of operations on a small machine keeps the contract: the specification, the isolation oracle after every
//! register write, the audit, and all resources free at the end.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use machine::op::Op;
use machine::world::{self, Board, World};

/// More operations than this find nothing that fewer do not.
const MOST: usize = 128;

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Ok(board) = Board::arbitrary(&mut input) else { return };
    let service = world::service();
    let mut world = World::new(board, &service).unwrap_or_else(|violation| panic!("{violation}"));
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let Ok(op) = Op::arbitrary(&mut input) else { break };
        if let Err(violation) = world.run(op) {
            panic!("{violation}");
        }
    }
    if let Err(violation) = world.finish() {
        panic!("{violation}");
    }
});
