//! How replicas of the hub tell each other: in the process, or through NATS JetStream.
