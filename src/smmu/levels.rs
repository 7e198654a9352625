//! The SMMU driver's place in the lock order.

use crate::sync::order::lock_order;

lock_order! {
    levels {
        Masters: "the red-black tree of all streams of all instances",
        StreamMap: "one instance's stream-map entries with their counts, which entries a device uses, and its context banks",
        TlbSync: "the posting of invalidations, the sync in flight of a sync register, and which bank caches which domain",
    }
    edges {
        Masters => StreamMap: "which devices use an entry is found in the tree and recorded in the map, in one step",
        StreamMap => TlbSync: "a bank joins its domain's flushes before M is set, and leaves them when it is retired",
    }
}
