//! The isolation oracle, which the fuzz targets use too: it lives beside the machine that it watches.

pub(crate) use machine::oracle::Oracle;
