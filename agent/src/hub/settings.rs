//! What an operator can set about the way to the hub. Nothing of it may be set by the hub itself.

use picket_config::{Confidential, Interval};
use picket_transport::Timeouts;
use picket_transport::hub::{HubOptions, ProxyChoice};
use std::time::Duration;

picket_config::choice! {
    /// Where events go.
    pub enum Via {
        /// To the hub once the machine is enrolled, else into its own store.
        Auto = "auto",
        /// To the hub; until the machine is enrolled they wait.
        Hub = "hub",
        /// Into the machine's own store; no hub is spoken to.
        None = "none",
    }
}

picket_config::settings! {
    /// The way to the hub.
    pub struct UplinkSettings {
        /// Where events go: `auto` to the hub once the machine is enrolled and else into its own store, `hub` to the hub or nowhere, `none` into its own store without speaking to any hub.
        pub via: Via = Via::Auto,
        /// Whether what goes to the hub is kept in the machine's own store, too.
        pub keep_local: bool = true,
        /// The proxy on the way: `auto` is what `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, `none` is none, else `http://host:port`.
        pub proxy: Confidential = "auto".into(),
        /// How long a connection with TLS may take.
        pub connect_timeout: Interval = Interval::seconds(15),
        /// How long an answer may take to begin.
        pub response_timeout: Interval = Interval::seconds(30),
        /// How long a request may take altogether.
        pub request_timeout: Interval = Interval::seconds(60),
    }
}

impl UplinkSettings {
    /// How the hub is called.
    pub fn options(&self, user_agent: &str) -> HubOptions {
        let least = |interval: Interval| interval.get().max(Duration::from_millis(100));
        let (connect, response) = (least(self.connect_timeout), least(self.response_timeout));
        HubOptions {
            user_agent: user_agent.to_owned(),
            timeouts: Timeouts { connect, response, stall: response },
            limit: least(self.request_timeout),
            proxy: match self.proxy.reveal() {
                "auto" | "" => ProxyChoice::Environment,
                "none" => ProxyChoice::None,
                address => ProxyChoice::Named(address.to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_password_is_not_shown_to_who_looks_for_faults() {
        let settings = UplinkSettings { proxy: "http://ada:hunter2@proxy:3128".into(), ..UplinkSettings::default() };
        let options = settings.options("test");
        assert!(matches!(&options.proxy, ProxyChoice::Named(address) if address.contains("hunter2")));
        assert!(!format!("{settings:?} {options:?}").contains("hunter2"));
    }
}
