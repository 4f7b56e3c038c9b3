//! A real systemd in containers.

fn main() {}
