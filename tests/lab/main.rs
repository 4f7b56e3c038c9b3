//! The built binary on real machines: Debian with a real systemd, in containers, with true power cuts.
//!
//! Needs root and what `scripts/setup` installs; `scripts/test` runs it. Every test has a machine of its own, made from
//! one image in about a second.
#![expect(clippy::disallowed_methods, reason = "tests look at files and processes directly")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod hub;
mod install;
mod power;
mod sensor;
mod update;
