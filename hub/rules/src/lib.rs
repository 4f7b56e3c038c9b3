//! Sigma rules: what makes of events a finding.
