//! The lock order, the locks, and what waits.
