//! All of the other tests once more, each hub with a PostgreSQL database and a NATS server of its own.

use picket_testkit::stores;

#[test]
fn all_of_it_holds_with_postgresql_and_nats_too() {
    if stores::are_servers() {
        return;
    }
    let ran = stores::run_again();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("test result: ok"), "{said}");
}
