//! What the operator says about watching connections.

use picket_config::Interval;
use picket_protocol::event::Protocol;

picket_config::settings! {
    /// Which connections are watched.
    pub struct NetworkMonitorSettings {
        /// Whether connections are watched at all.
        pub enabled: bool = false,
        /// The ports that matter, on either side of a connection; an empty list means all.
        pub ports: Vec<u16> = Vec::new(),
        /// The protocols that matter. Of UDP, sockets that are connected to one peer are watched.
        pub protocols: Vec<WatchedProtocol> = vec![WatchedProtocol::Tcp, WatchedProtocol::Udp],
        /// How often all sockets are looked at, at least 100 ms. Closes are told by the kernel as they happen.
        pub interval: Interval = Interval::seconds(1),
        /// Whether connections of this machine with itself over a loopback address are reported. Each has two ends here.
        pub loopback: bool = true,
        /// Whether the names of the other side's addresses are looked up. Events never wait for it.
        pub resolve_names: bool = false,
    }
}

picket_config::choice! {
    /// A protocol that is watched.
    pub enum WatchedProtocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

impl From<WatchedProtocol> for Protocol {
    fn from(protocol: WatchedProtocol) -> Self {
        match protocol {
            WatchedProtocol::Tcp => Self::Tcp,
            WatchedProtocol::Udp => Self::Udp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_config::{Layers, Node, Origin, Problems, Setting, Value};

    fn leaf(value: Value) -> Node {
        Node { value, origin: Origin::Default }
    }

    #[test]
    fn the_configuration_that_was_asked_for_works_as_it_stands() {
        let node = leaf(Value::Table(
            [
                ("enabled".to_owned(), leaf(Value::Bool(true))),
                ("ports".to_owned(), leaf(Value::List(vec![leaf(Value::Integer(22)), leaf(Value::Integer(80))]))),
            ]
            .into(),
        ));
        let mut problems = Problems::default();
        let settings = NetworkMonitorSettings::read(&node, "network_monitor", &mut problems).unwrap();
        assert_eq!(problems, Problems::default());
        assert!(settings.enabled && settings.ports == [22, 80]);
        assert_eq!(settings.interval, Interval::seconds(1));
        assert!(!settings.resolve_names);
    }

    #[test]
    fn nothing_is_watched_until_somebody_asks_for_it() {
        let settings = Layers::new::<NetworkMonitorSettings>().resolve::<NetworkMonitorSettings>().settings;
        assert!(!settings.enabled);
    }
}
