//! Every operation against its f64 reference, on every instruction set that
//! the machine has, and the promise that a row's bits depend on the row alone.

mod attention;
mod case;
mod cuda_bounds;
mod elementwise;
mod encoder;
mod experts;
mod gated;
mod int8;
mod linear;
mod sampling;
mod skinny;
