//! SQLite: one file, one thread that writes, a few connections that read.

mod connect;
mod engine;
mod ingest;
mod readers;
mod tx;
mod writer;

pub(crate) use connect::real_path as file_of;
pub(crate) use engine::Sqlite;
