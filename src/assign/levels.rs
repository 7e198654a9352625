//! The assignment layer's place in the lock order.

use crate::sync::order::lock_order;

lock_order! {
    levels {
        Registry: "the tree of devices of every source, their states, groups and claims; domains; IOMMU instances and their holds",
        Instances: "which IOMMU instances are in service, by name",
        FlushList: "a domain's list of the IOMMUs on which it has, or is about to have, a live context",
        Queue: "a request queue's lists: all that it keeps, what stands in line, what met a claimed group",
    }
    edges {
        Registry => Instances: "an instance is registered and found, or neither",
    }
}
