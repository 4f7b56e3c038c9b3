//! What the hub does, without the ways in which it is asked: one file a noun.

pub mod admission;
pub mod audit;
pub mod backup;
pub mod batch;
pub mod belonging;
pub mod books;
pub mod configs;
pub mod deliveries;
pub mod enrol;
pub mod heartbeats;
pub mod identity;
pub mod intake;
pub mod judge;
pub mod lines;
pub mod own_events;
pub mod people;
pub mod presence;
pub mod relayed;
pub mod replicas;
pub mod roll;
pub mod rules;
pub mod tokens;
pub mod upkeep;
