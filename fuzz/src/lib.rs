//! What each fuzz target does with its bytes: the same functions that the suite runs over `fuzz/regressions`.

#[path = "targets.rs"]
pub mod targets;
