//! A small hypervisor on a modelled board.

fn main() {}
