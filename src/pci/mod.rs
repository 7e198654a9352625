//! PCI functions: their addresses, configuration space, and the requester IDs that their DMA carries.
