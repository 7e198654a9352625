//! The SMMU driver's place in the lock order.

use crate::sync::order::lock_order;

lock_order! {
    levels {
        Masters: "the red-black tree of all masters of all instances",
        StreamMap: "one instance's stream-map entries with their counts, which entries a master uses, its context banks and VMIDs",
        TlbSync: "the posting of invalidations and of the one sync in flight of a sync register: an instance's own, or a bank's",
        Spare: "the room that one instance keeps for laying out entries where no device brings it",
    }
    edges {
        Masters => StreamMap: "a master is published with its use of the map, or both are taken back with its entries, in one step",
        Masters => Spare: "a withdrawal, which holds both, sees that what stays is to be laid out anew",
        StreamMap => Spare: "that entries are to be laid out is seen under the map's lock, and looked at in the same step",
    }
}
