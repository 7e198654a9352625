//! The common assignment layer: devices, groups, domains, and the order of operations on them.

mod spec;

pub use spec::{IommuKey, Stream, StreamId, StreamMask};
