//! Judges from outside of a hub that runs: schemathesis of its API, sslyze of its TLS.

use crate::hub::Hub;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program that `scripts/setup test` installs.
fn judge(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

/// What it said, and whether it was content.
fn heard(command: &mut Command) -> (bool, String) {
    let program = command.get_program().to_owned();
    let ran = command.output();
    let ran = ran.unwrap_or_else(|error| panic!("{}, which `scripts/setup test` installs: {error}", program.display()));
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr))
}

/// The certificate that everything of this hub's is signed by.
fn root(hub: &Hub) -> PathBuf {
    hub.prefix.path("var/lib/picket-hub/keys/root.crt")
}

#[test]
fn schemathesis_finds_the_api_to_be_what_its_description_says() {
    let mut hub = Hub::made();
    // It asks more often than anybody may.
    let policies = "rate_limiting: {default_limit: 1000000, burst_limit: 1000000}\n";
    fs::write(hub.prefix.path("etc/picket/security_policies.yaml"), policies).unwrap();
    let token = hub.picket(&["hub", "user", "token", "admin", "--json"]).expect(0).json();
    hub.start();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis.toml");
    let (is_content, said) = heard(
        judge("schemathesis")
            .current_dir(hub.prefix.path(""))
            .args(["--config-file", config, "run", "--no-color", "--workers", "2", "--max-examples", "3"])
            .args(["--phases", "coverage,fuzzing", "--generation-deterministic", "--continue-on-failure"])
            // Live views are WebSockets; Autobahn judges those.
            .args(["--no-shrink", "--exclude-path-regex", "/ws/", "--tls-verify"])
            .arg(root(&hub))
            .arg("--header")
            .arg(format!("Authorization: Bearer {}", token["token"].as_str().unwrap()))
            .arg(format!("https://127.0.0.1:{}/api/openapi.json", hub.ports[1])),
    );
    assert!(is_content, "{said}");
    // It did ask, and every operation.
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")).unwrap_or_default();
    assert!(tested.parse::<u32>().is_ok_and(|operations| operations > 60), "{said}");
    // None of that was an error of the hub's, nor is its audit log torn.
    let log = fs::read_to_string(hub.prefix.path("hub.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    hub.stop();
    hub.picket(&["hub", "audit-verify"]).expect(0);
}

/// What sslyze found at a port: its results, by the name of each check.
fn scan(hub: &Hub, port: u16) -> Value {
    let file = hub.prefix.path(&format!("sslyze-{port}.json"));
    let (is_done, said) = heard(
        judge("sslyze")
            .args(["--mozilla_config=disable", "--certinfo", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1"])
            .args(["--tlsv1_2", "--tlsv1_3", "--heartbleed", "--openssl_ccs", "--robot", "--reneg", "--compression"])
            .args(["--fallback", "--early_data", "--elliptic_curves", "--ems", "--certinfo_ca_file"])
            .arg(root(hub))
            .arg(format!("--json_out={}", file.display()))
            .arg(format!("127.0.0.1:{port}")),
    );
    let report = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error} ({is_done}): {said}"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["server_scan_results"][0]["scan_status"], "COMPLETED", "{said}");
    report["server_scan_results"][0]["scan_result"].clone()
}

/// The names of the suites that were accepted.
fn suites(scan: &Value, check: &str) -> Vec<String> {
    assert_eq!(scan[check]["status"], "COMPLETED", "{check}");
    let accepted = scan[check]["result"]["accepted_cipher_suites"].as_array().unwrap();
    accepted.iter().map(|suite| suite["cipher_suite"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn sslyze_finds_no_weak_protocol_suite_or_known_hole_at_either_listener() {
    let mut hub = Hub::made();
    hub.start();
    for port in hub.ports {
        let scan = scan(&hub, port);
        for old in ["ssl_2_0_cipher_suites", "ssl_3_0_cipher_suites", "tls_1_0_cipher_suites", "tls_1_1_cipher_suites"]
        {
            assert_eq!(suites(&scan, old), Vec::<String>::new(), "{old} at {port}");
        }
        // Forward secrecy and authenticated encryption, nothing else (RFC 9325 §4.2).
        let new = suites(&scan, "tls_1_3_cipher_suites");
        let old = suites(&scan, "tls_1_2_cipher_suites");
        assert!(!new.is_empty() && !old.is_empty(), "{port}: {new:?} {old:?}");
        for suite in new.iter().chain(&old) {
            let is_aead = suite.contains("_GCM_") || suite.contains("_CHACHA20_POLY1305_");
            assert!(is_aead && (new.contains(suite) || suite.starts_with("TLS_ECDHE_ECDSA_")), "{suite} at {port}");
        }
        let result = |check: &str| {
            assert_eq!(scan[check]["status"], "COMPLETED", "{check}: {}", scan[check]);
            &scan[check]["result"]
        };
        assert_eq!(result("heartbleed")["is_vulnerable_to_heartbleed"], false);
        assert_eq!(result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"], false);
        assert!(result("robot")["robot_result"].as_str().unwrap().starts_with("NOT_VULNERABLE"));
        assert_eq!(result("tls_compression")["supports_compression"], false);
        assert_eq!(result("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"], false);
        assert_eq!(result("session_renegotiation")["supports_secure_renegotiation"], true);
        assert_eq!(result("tls_1_3_early_data")["supports_early_data"], false, "what is replayed would be done twice");
        assert_eq!(result("tls_fallback_scsv")["supports_fallback_scsv"], true);
        assert_eq!(result("tls_extended_master_secret")["supports_ems_extension"], true);
        for curve in result("elliptic_curves")["supported_curves"].as_array().unwrap() {
            assert!(
                ["X25519", "secp256r1", "prime256v1", "secp384r1"].contains(&curve["name"].as_str().unwrap()),
                "{curve}"
            );
        }
        for deployment in result("certificate_info")["certificate_deployments"].as_array().unwrap() {
            assert_eq!(deployment["received_chain_has_valid_order"], true);
            assert_eq!(deployment["verified_chain_has_sha1_signature"], false);
            let ours = deployment["path_validation_results"].as_array().unwrap().iter();
            let mut ours = ours.filter(|result| result["trust_store"]["name"] == "Supplied CA file");
            assert_eq!(ours.next().unwrap()["was_validation_successful"], true);
            let leaf = &deployment["received_certificate_chain"][0];
            assert_eq!(leaf["subject_alternative_name"]["ip_addresses"][0], "127.0.0.1");
            assert_eq!(leaf["public_key"]["key_size"], 256);
        }
    }
    hub.stop();
}
