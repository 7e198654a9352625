//! The SMMU driver's place in the lock order.

use crate::sync::order::lock_order;

lock_order! {
    levels {
        Masters: "the red-black tree of all masters of all instances",
        StreamMap: "one instance's stream-map entries with their counts, which entries a master uses, its context banks and VMIDs",
        TlbSync: "the posting of invalidations and of the one sync in flight of a sync register: an instance's own, or a bank's",
    }
    edges {
        Masters => StreamMap: "a master is published with its use of the map, or both are taken back with its entries, in one step",
    }
}
