//! Devices, SMMUs and host bridges as firmware's device tree describes them.
