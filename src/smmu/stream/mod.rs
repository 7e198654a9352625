//! From stream IDs to stream-map entries.
//!
//! | file | what |
//! |---|---|
//! | `cover/` | the fewest entries that capture a set of IDs; pure |
//! | `number_set.rs` | sets of entries and of banks |
//! | `masters.rs` | the tree of all streams: whose streams overlap these? |
//! | `entry.rs` | one entry, and its two registers: the only writer of SMR and S2CR |
//! | `user.rs` | what one device uses of an instance |
//! | `map.rs` | all entries and all users of an instance, with the counts of both |
//! | `placing.rs` | taking entries for a device, giving them back, refitting what stays |

pub mod cover;
pub(in crate::smmu) mod number_set;
pub(in crate::smmu) mod masters;
pub(in crate::smmu) mod entry;
pub(in crate::smmu) mod user;
pub(in crate::smmu) mod map;
pub(in crate::smmu) mod placing;
