//! `picket update check --releases`: the releases of a repository on GitHub, and of a signed channel.

use picket_testkit::{FakeGitHub, Fault, Prefix, ReleaseServer, Vendor, build, this_target};

/// A repository with one real release and as many pre-releases as asked, and that release installed.
fn followed(others: u32) -> (FakeGitHub, Prefix) {
    let (vendor, github) = (Vendor::new(), FakeGitHub::start());
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    github.publish(&vendor);
    let archive = format!("picket-{}.tar.xz", this_target());
    for number in 1..=others {
        let assets: &[(&str, &[u8])] = if number == 1 { &[(&archive, b"bytes")] } else { &[] };
        github.release(&format!("v1.{number}.0"), &format!("## New in {number}\r\n- one\u{1b}[2J"), true, assets);
    }
    github.release("nightly", "no version at all", true, &[]);
    let config = format!("update:\n  releases: {}\n  releases_api: {}\n", github.releases(), github.api_url());
    let prefix = Prefix::with_config(&config);
    prefix.install(&first, &vendor.root_file());
    github.forget();
    (github, prefix)
}

const LIST: [&str; 3] = ["update", "check", "--releases"];

#[test]
fn the_releases_of_a_repository_are_listed_newest_first_with_their_notes() {
    let (github, prefix) = followed(3);
    let listed = prefix.picket(&LIST).expect(0);
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert!(lines[0].starts_with("v1.3.0  20") && lines[0].ends_with("(no build for this machine)"), "{lines:?}");
    assert_eq!(lines[1..3], ["    ## New in 3", "    - one[2J"]);
    let fitting: Vec<&&str> = lines.iter().filter(|line| line.starts_with('v') && !line.contains("no build")).collect();
    assert!(fitting.len() == 2 && fitting[0].starts_with("v1.1.0") && fitting[1].starts_with("v1.0.0"), "{lines:?}");
    assert!(listed.stderr.contains("the server's word"), "{}", listed.stderr);
    let json = prefix.picket(&["update", "check", "--releases", "--limit", "2", "--json"]).expect(0).json();
    assert_eq!(json["signed"], false);
    let versions: Vec<&str> =
        json["releases"].as_array().unwrap().iter().map(|one| one["version"].as_str().unwrap()).collect();
    assert_eq!(versions, ["1.3.0", "1.2.0"]);
    assert!(github.requests().iter().all(|request| request.starts_with("api ")), "{:?}", github.requests());
    prefix.picket(&["update", "check", "--limit", "2"]).expect(2);
}

#[test]
fn a_long_list_is_asked_for_page_by_page_and_no_further_than_it_is_wanted() {
    let (github, prefix) = followed(120);
    let pages = |limit: &str| {
        github.forget();
        let args = ["update", "check", "--releases", "--json", "--limit", limit];
        let count = prefix.picket(&args).expect(0).json()["releases"].as_array().unwrap().len();
        (count, github.requests().len())
    };
    assert_eq!(pages("20"), (20, 1));
    assert_eq!(pages("300"), (121, 2));
}

#[test]
fn a_spent_quota_says_when_to_ask_again_and_a_token_goes_to_the_api_alone_and_is_shown_nowhere() {
    let (github, mut prefix) = followed(1);
    github.spend_quota();
    let refused = prefix.picket(&LIST).expect(31);
    for words in ["limits how often this address may ask; ask again in 60 min", "GH_ENTERPRISE_TOKEN"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    assert_eq!(github.tokens_went_to(), [""; 0]);
    // One for github.com is not for this host.
    prefix.set("GH_TOKEN", "ghp_s3cret");
    prefix.picket(&LIST).expect(31);
    assert_eq!(github.tokens_went_to(), [""; 0]);
    prefix.set("GH_ENTERPRISE_TOKEN", "ghp_s3cret");
    let listed = prefix.picket(&LIST).expect(0);
    assert_eq!(github.tokens_went_to(), ["api"]);
    let checked = prefix.picket(&["update", "check"]).expect(0);
    assert_eq!(github.tokens_went_to(), ["api"], "a check follows no API");
    for text in [listed.stdout, listed.stderr, checked.stderr, prefix.log()] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn what_is_no_list_of_releases_is_told_as_the_servers_trouble() {
    let (github, mut prefix) = followed(0);
    let mut ask = |api: &str| {
        prefix.set("PICKET_UPDATE_RELEASES_API", api);
        prefix.picket(&LIST)
    };
    let page = ask(&github.repository_url()).expect(31);
    assert!(page.stderr.contains("404") && page.stderr.contains("private"), "{}", page.stderr);
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("repos/o/r")).unwrap();
    std::fs::write(tree.path().join("repos/o/r/releases"), "[{\"tag_name\": 7}]").unwrap();
    let server = ReleaseServer::start(tree.path());
    let nonsense = ask(&server.url()).expect(31);
    assert!(nonsense.stderr.contains("no list of releases"), "{}", nonsense.stderr);
    let open = ask("http://api.example.com").expect(78);
    assert!(open.stderr.contains("update.releases_api") && open.stderr.contains("https"), "{}", open.stderr);
}

#[test]
fn of_a_release_tree_the_signed_channel_is_listed() {
    let vendor = Vendor::new();
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    vendor.release(&build("2.0.0", Fault::None));
    let server = ReleaseServer::start(&vendor.tree());
    let prefix = Prefix::new(&server.url());
    prefix.install(&first, &vendor.root_file());
    let listed = prefix.picket(&LIST).expect(0);
    assert!(listed.stdout.starts_with("v2.0.0  20"), "{}", listed.stdout);
    assert!(listed.stdout.contains("    What is new in 2.0.0\nv1.0.0"), "{}", listed.stdout);
    let json = prefix.picket(&["update", "check", "--releases", "--json"]).expect(0).json();
    assert_eq!((&json["signed"], &json["releases"][1]["version"]), (&true.into(), &"1.0.0".into()));
}
