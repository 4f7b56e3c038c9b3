//! Keys, certificates and enrolment tokens: who a machine is, and who its hub is.
