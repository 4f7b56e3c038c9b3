//! Servers that are weaker than they must be.

use picket_bus::{NatsBus, NatsSettings};
use picket_testkit::NatsServer;

use crate::support::settings;

fn strict(server: &NatsServer) -> NatsSettings {
    NatsSettings { accept_unknown_sync: false, monitoring: vec![server.monitoring()], ..settings(server) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_acknowledges_before_it_syncs_is_refused_with_what_to_do_unless_it_is_accepted() {
    let server = NatsServer::start_lazy();
    let error = NatsBus::connect(strict(&server)).await.unwrap_err().to_string();
    assert!(error.contains("sync_interval: always") && error.contains("bus.accept_unknown_sync: true"), "{error}");
    let accepted = NatsSettings { accept_unknown_sync: true, ..strict(&server) };
    assert!(NatsBus::connect(accepted).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_believed_by_its_monitoring_port_and_not_by_its_silence() {
    let server = NatsServer::start();
    let silent = NatsBus::connect(NatsSettings { monitoring: Vec::new(), ..strict(&server) }).await.unwrap_err();
    assert!(silent.to_string().contains("bus.accept_unknown_sync: true"), "{silent}");
    let mut elsewhere = strict(&server);
    elsewhere.monitoring = vec![server.url().replace("nats:", "http:")];
    let error = NatsBus::connect(elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("bus.accept_unknown_sync: true"), "{error}");
    let told = NatsBus::connect(strict(&server)).await;
    // Debian's server is older than the setting: it can only be accepted as it is.
    assert_eq!(told.is_ok(), server.can_sync(), "{told:?}");
}
