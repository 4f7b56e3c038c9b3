//! The ways in which the hub is asked: HTTP and `WebSockets`, for agents and for people.

pub mod agent;
pub(crate) mod body;
pub(crate) mod cause;
pub mod people;
pub(crate) mod websocket;
