//! Every operation in f64, written to be read.
