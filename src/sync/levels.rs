//! The lock order: every level, by the floor that takes it, and every edge between two.
//!
//! Marker types alone: nothing of those floors is used here.

use super::order::lock_order;

lock_order! {
    levels {
        assign {
            Registry: "the trees of devices of every source with their groups; domains; what holds both and the IOMMU instances in service",
            Instances: "which IOMMU instances are found by name",
            FlushList: "a domain's list of the IOMMUs on which it has, or is about to have, a live context",
            Queue: "a request queue's lists: all that it keeps, what stands in line, what met a claimed group",
        }
        smmu {
            Masters: "the red-black tree of all streams of all instances",
            StreamMap: "one instance's stream-map entries with their counts, which entries a device uses, and its context banks",
            TlbSync: "the posting of invalidations, the sync in flight of a sync register, and which bank caches which domain",
        }
    }
    edges {
        Masters => StreamMap: "which devices use an entry is found in the tree and recorded in the map, in one step",
        StreamMap => TlbSync: "a bank joins its domain's flushes before M is set, and leaves them when it is retired",
    }
}
