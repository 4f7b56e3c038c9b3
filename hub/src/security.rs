//! How the hub defends itself: the policies of `security_policies.yaml`.

use jiff::SignedDuration;
use picket_hub_db::Network;
use std::collections::BTreeMap;

picket_config::settings! {
    /// What is taken as input.
    pub struct InputValidation {
        /// The longest text of a field, in characters; many fields take less. Rules and events have limits of their own.
        pub max_input_length: u32 = 10_000,
        /// Patterns (regular expressions) that make an input suspicious. What people and programs send to the API and matches
        /// one becomes a finding; it is never refused for that, and events of agents are not looked at: a security product
        /// must be able to hear of attacks.
        pub forbidden_patterns: Vec<String> = ["<script[^>]*>.*?</script>", r"union\s+select", r"\.\./", r"eval\s*\(", r"exec\s*\("].map(str::to_owned).to_vec(),
    }
}

picket_config::settings! {
    /// How often somebody may ask.
    pub struct RateLimiting {
        /// Requests of one principal, or of one address where nobody said who they are, within the window.
        pub default_limit: u32 = 100,
        /// The window in seconds.
        pub window_seconds: u32 = 60,
        /// How many of them at once.
        pub burst_limit: u32 = 10,
    }
}

picket_config::settings! {
    /// Who is turned away.
    pub struct IpBlocking {
        /// Whether an address that fails to authenticate ten times within a quarter of an hour is blocked, and a name that
        /// ten addresses fail with: that one for new sign-ins with its password, from where it has not signed in before.
        pub auto_block_on_critical: bool = true,
        /// For how many hours.
        pub block_duration_hours: u32 = 24,
        /// Addresses and networks that are never blocked.
        pub whitelist: Vec<String> = ["127.0.0.1", "::1"].map(str::to_owned).to_vec(),
        /// Proxies (addresses and networks) whose `X-Forwarded-For` is believed.
        pub trusted_proxies: Vec<String> = Vec::new(),
    }
}

picket_config::settings! {
    /// Requests that a page of somebody else's makes a browser send.
    pub struct CsrfProtection {
        /// For how many seconds a token holds.
        pub token_max_age: u32 = 3600,
        /// Whether a change with a session's cookie needs a token.
        pub require_csrf: bool = true,
    }
}

picket_config::settings! {
    /// Headers of every answer.
    pub struct HeaderPolicies {
        /// Headers that are added to the hub's own or replace them.
        pub security_headers: BTreeMap<String, String> = BTreeMap::new(),
    }
}

picket_config::settings! {
    /// `security_policies.yaml`.
    pub struct SecurityPolicies {
        /// What is taken as input.
        pub input_validation: InputValidation = InputValidation::default(),
        /// How often somebody may ask.
        pub rate_limiting: RateLimiting = RateLimiting::default(),
        /// Who is turned away.
        pub ip_blocking: IpBlocking = IpBlocking::default(),
        /// Forged requests.
        pub csrf_protection: CsrfProtection = CsrfProtection::default(),
        /// Headers of every answer.
        pub headers: HeaderPolicies = HeaderPolicies::default(),
    }
}

/// The policies, resolved.
#[derive(Debug, Clone)]
pub struct Security {
    /// As configured.
    pub policies: SecurityPolicies,
    /// Who is never blocked.
    pub never_blocked: Vec<Network>,
    /// Whose word about who asks is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether anybody is blocked.
    pub auto_block: bool,
    /// For how long.
    pub block_for: SignedDuration,
}

impl Security {
    /// Resolves the policies.
    ///
    /// # Errors
    /// The key whose value is no address or network.
    pub fn new(policies: SecurityPolicies) -> Result<Self, crate::config::ConfigError> {
        let networks = |key: &'static str, list: &[String]| {
            let parsed = list.iter().map(|text| {
                text.parse::<Network>().map_err(|_| crate::config::ConfigError {
                    key,
                    message: format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"),
                })
            });
            parsed.collect::<Result<Vec<_>, _>>()
        };
        let blocking = &policies.ip_blocking;
        Ok(Self {
            never_blocked: networks("ip_blocking.whitelist", &blocking.whitelist)?,
            trusted_proxies: networks("ip_blocking.trusted_proxies", &blocking.trusted_proxies)?,
            auto_block: blocking.auto_block_on_critical,
            block_for: SignedDuration::from_hours(i64::from(blocking.block_duration_hours)),
            policies,
        })
    }
}
