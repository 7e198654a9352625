//! The assignment layer's place in the lock order.

use crate::sync::order::lock_order;

lock_order! {
    levels {
        Registry: "the trees of devices of every source with their groups; domains; what holds both and the IOMMU instances in service",
        Instances: "which IOMMU instances are found by name",
        FlushList: "a domain's list of the IOMMUs on which it has, or is about to have, a live context",
        Queue: "a request queue's lists: all that it keeps, what stands in line, what met a claimed group",
    }
    edges {}
}
