//! Every CUDA kernel, run by the shim, against the f64 references.

mod attention;
mod backend;
mod element;
mod elementwise;
mod mutations;
mod sampling;
