//! Simulated fleets around a real hub: what they cost it, and what is lost while everything is killed.
//!
//! A simulated agent speaks the real wire with the agent's own parts: [`machine`] enrols by the token's pins with a key and a
//! request of its own, [`beat`] holds the WebSocket and waits as the agent waits, [`uplink`] delivers batches and reads
//! refusals as the agent does. Thousands of them live in one process. [`faults`] makes agents that are processes of their own,
//! with the agent's queue on disk, and kills them, the hub and what the hub needs. [`measure`] tells what a hub can do, beside
//! what its store can do alone, in one run.
//!
//! `scripts/faults` and `scripts/bench hub` are the ways in.

pub mod beat;
pub mod delays;
pub mod event;
pub mod faults;
pub mod hub;
pub mod machine;
pub mod measure;
pub mod process;
pub mod uplink;
