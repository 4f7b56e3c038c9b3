//! What an engine of rules does, told in sentences.

mod corpus;
mod correlations;
mod cost;
mod oracle;
mod pack;
mod sets;
mod support;
mod validation;
mod views;
