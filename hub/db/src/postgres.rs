//! PostgreSQL: a pool of connections, partitions by day, rows in bulk by COPY.

mod connect;
mod engine;
mod ingest;
mod partitions;
mod tx;

pub(crate) use engine::Postgres;
