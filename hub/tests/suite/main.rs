//! The hub as a whole, over real TLS: one test program, so that it is linked once.

mod fleet;
mod judge;
mod people;
mod wire;
