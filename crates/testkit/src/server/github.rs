//! A stand-in for GitHub that answers as the real one does, on three addresses of this machine: the site, the API, and the
//! store that assets come from.
//!
//! | asked for | answer |
//! |---|---|
//! | site `/O/R/releases/latest/download/NAME` | 302 to the newest release that is no pre-release |
//! | site `/O/R/releases/download/TAG/NAME` | 302 to the store, with a signed query; 404 with a page of HTML |
//! | store `/github-production-release-asset/…?sp=r&sig=…` | the bytes, with a strong ETag and ranges; 403 with XML unless the signature is right |
//! | API `/repos/O/R/releases?per_page=&page=` | JSON, newest first, with `Link` to the next page |
//! | API `/repos/O/R/releases/latest`, `…/tags/TAG`, `…/assets/ID` | one release; an asset by 302 to the store |
//!
//! The API wants a `User-Agent`, counts (60 requests an hour without a token) and then answers 403 with
//! `x-ratelimit-remaining: 0` and `x-ratelimit-reset`. Sources: docs.github.com, "REST API endpoints for releases",
//! "Rate limits for the REST API", "Using pagination in the REST API"; the addresses as github.com gives them.

use super::http::{Request, Stream, answer, checksum, head, part, serve, wake};
use crate::vendor::Vendor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The repository that it holds.
const REPOSITORY: &str = "o/r";
/// Requests an hour to the API without a token.
const QUOTA: u32 = 60;
const NOT_FOUND_PAGE: &[u8] = b"<!DOCTYPE html><html><head><title>Page not found</title></head><body>404</body></html>";

/// A running GitHub; it ends with the value.
pub struct FakeGitHub {
    site: SocketAddr,
    api: SocketAddr,
    store: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    releases: Vec<Release>,
    requests: Vec<String>,
    /// Where a request with `Authorization` went: `site`, `api` or `store`.
    tokens: Vec<&'static str>,
    spent: u32,
    addresses: Option<[SocketAddr; 3]>,
}

struct Release {
    tag: String,
    notes: String,
    prerelease: bool,
    published: jiff::Timestamp,
    assets: BTreeMap<String, Vec<u8>>,
}

impl FakeGitHub {
    /// A GitHub with the empty repository `o/r`.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let open = |act: fn(&Shared, &Request, &mut dyn Stream) -> io::Result<()>| {
            let ours = Arc::clone(&shared);
            let handler = Arc::new(move |request: &Request, stream: &mut dyn Stream| act(&ours, request, stream));
            serve(TcpListener::bind("127.0.0.1:0").unwrap(), None, Arc::clone(&shared.stop), handler)
        };
        let (site, api, store) = (open(site), open(api), open(store));
        shared.state.lock().unwrap().addresses = Some([site, api, store]);
        Self { site, api, store, shared }
    }

    /// The repository's address, as `https://github.com/OWNER/REPOSITORY` is.
    pub fn repository_url(&self) -> String {
        format!("http://{}/{REPOSITORY}", self.site)
    }

    /// What `update.releases` is set to, to follow the repository.
    pub fn releases(&self) -> String {
        format!("github+{}", self.repository_url())
    }

    /// The API's address, as `https://api.github.com` is.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Publishes everything that `vendor` published, as `scripts/sign-release` does: each version as a release of its tag,
    /// the metadata as assets of the newest.
    pub fn publish(&self, vendor: &Vendor) {
        let assets = tempfile::tempdir().unwrap();
        vendor.repository().write_github_assets(assets.path()).unwrap();
        let folders =
            fs::read_dir(assets.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut versions: Vec<semver::Version> =
            folders.filter_map(|name| name.strip_prefix('v')?.parse().ok()).collect();
        versions.sort();
        let mut state = self.shared.state.lock().unwrap();
        for version in &versions {
            let tag = format!("v{version}");
            let files = files(&assets.path().join(&tag));
            match state.releases.iter_mut().find(|release| release.tag == tag) {
                Some(release) => release.assets.extend(files),
                None => state.add(&tag, &format!("What is new in {version}"), false, files),
            }
        }
        let newest = versions.iter().rfind(|version| version.pre.is_empty()).map(|version| format!("v{version}"));
        let newest = state.releases.iter_mut().find(|release| Some(&release.tag) == newest.as_ref()).unwrap();
        newest.assets.extend(files(&assets.path().join("latest")));
    }

    /// Publishes a release by hand.
    pub fn release(&self, tag: &str, notes: &str, prerelease: bool, assets: &[(&str, &[u8])]) {
        let assets = assets.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        self.shared.state.lock().unwrap().add(tag, notes, prerelease, assets);
    }

    /// Deletes an asset of every release.
    pub fn delete_asset(&self, name: &str) {
        self.shared.state.lock().unwrap().releases.iter_mut().for_each(|release| drop(release.assets.remove(name)));
    }

    /// Uses up what the API gives this hour.
    pub fn spend_quota(&self) {
        self.shared.state.lock().unwrap().spent = QUOTA;
    }

    /// Lets an hour pass for the API.
    pub fn renew_quota(&self) {
        self.shared.state.lock().unwrap().spent = 0;
    }

    /// The requests so far: `site GET /path`, `api GET /path`, `store GET /path range N`; queries with them.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.requests.clear();
        state.tokens.clear();
    }

    /// Which of `site`, `api` and `store` were sent an `Authorization`, in order.
    pub fn tokens_went_to(&self) -> Vec<&'static str> {
        self.shared.state.lock().unwrap().tokens.clone()
    }
}

impl Drop for FakeGitHub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for address in [self.site, self.api, self.store] {
            wake(address);
        }
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

impl State {
    fn add(&mut self, tag: &str, notes: &str, prerelease: bool, assets: BTreeMap<String, Vec<u8>>) {
        let (tag, notes, published) = (tag.to_owned(), notes.to_owned(), jiff::Timestamp::now());
        self.releases.push(Release { tag, notes, prerelease, published, assets });
    }

    fn note(&mut self, place: &'static str, request: &Request) {
        let range = request.range.map(|from| format!(" range {from}")).unwrap_or_default();
        self.requests.push(format!("{place} GET {}{range}", request.path));
        if request.authorization.is_some() {
            self.tokens.push(place);
        }
    }

    /// The one that `latest` means.
    fn latest(&self) -> Option<&Release> {
        self.releases.iter().rfind(|release| !release.prerelease)
    }

    fn tagged(&self, tag: &str) -> Option<&Release> {
        self.releases.iter().find(|release| release.tag == tag)
    }

    fn url(&self, place: usize) -> String {
        // The store is another host.
        let address = self.addresses.unwrap()[place];
        if place == 2 { format!("http://localhost:{}", address.port()) } else { format!("http://{address}") }
    }

    /// The address in the store of an asset: known to whoever was redirected there.
    fn signed(&self, tag: &str, name: &str) -> String {
        let path = format!("/github-production-release-asset/1/{tag}/{name}");
        let disposition =
            format!("rscd=attachment%3B+filename%3D{name}&response-content-type=application%2Foctet-stream");
        format!("{}{path}?sp=r&sv=2018-11-09&sr=b&{disposition}&sig={}", self.url(2), signature(&path))
    }

    fn describe(&self, at: usize, release: &Release) -> Value {
        let (site, api) = (self.url(0), self.url(1));
        let assets = release.assets.iter().enumerate().map(|(number, (name, bytes))| {
            let id = at * 1000 + number;
            json!({
                "id": id, "name": name, "state": "uploaded", "size": bytes.len(), "content_type": "application/octet-stream",
                "url": format!("{api}/repos/{REPOSITORY}/releases/assets/{id}"),
                "browser_download_url": format!("{site}/{REPOSITORY}/releases/download/{}/{name}", release.tag),
            })
        });
        json!({
            "id": at, "tag_name": release.tag, "target_commitish": "main", "name": format!("Release {}", release.tag),
            "body": release.notes, "draft": false, "prerelease": release.prerelease,
            "created_at": release.published, "published_at": release.published,
            "url": format!("{api}/repos/{REPOSITORY}/releases/{at}"),
            "html_url": format!("{site}/{REPOSITORY}/releases/tag/{}", release.tag),
            "tarball_url": format!("{api}/repos/{REPOSITORY}/tarball/{}", release.tag),
            "zipball_url": format!("{api}/repos/{REPOSITORY}/zipball/{}", release.tag),
            "assets": assets.collect::<Vec<Value>>(),
        })
    }
}

/// Not to be guessed by who was not redirected; kept out of every log.
fn signature(path: &str) -> String {
    format!("s3cret{:016x}", checksum(path.as_bytes()))
}

fn not_found(stream: &mut dyn Stream) -> io::Result<()> {
    answer(stream, 404, "content-type: text/html; charset=utf-8\r\n", NOT_FOUND_PAGE)
}

fn redirect(stream: &mut dyn Stream, to: &str) -> io::Result<()> {
    answer(stream, 302, &format!("location: {to}\r\ncontent-type: text/html; charset=utf-8\r\n"), b"")
}

fn site(shared: &Shared, request: &Request, stream: &mut dyn Stream) -> io::Result<()> {
    let mut state = shared.state.lock().unwrap();
    state.note("site", request);
    let releases = format!("/{REPOSITORY}/releases/");
    let asked = request.path.strip_prefix(&releases).unwrap_or_default();
    if let Some(name) = asked.strip_prefix("latest/download/") {
        // The name is not looked up before the second hop.
        return match state.latest() {
            Some(latest) => redirect(stream, &format!("{}{releases}download/{}/{name}", state.url(0), latest.tag)),
            None => not_found(stream),
        };
    }
    let asset = asked.strip_prefix("download/").and_then(|rest| rest.split_once('/'));
    match asset.filter(|(tag, name)| state.tagged(tag).is_some_and(|release| release.assets.contains_key(*name))) {
        Some((tag, name)) => redirect(stream, &state.signed(tag, name)),
        None => not_found(stream),
    }
}

fn store(shared: &Shared, request: &Request, stream: &mut dyn Stream) -> io::Result<()> {
    let mut state = shared.state.lock().unwrap();
    state.note("store", request);
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if !query.split('&').any(|pair| pair == format!("sig={}", signature(path))) {
        let body = b"<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code></Error>";
        return answer(stream, 403, "content-type: application/xml\r\n", body);
    }
    let mut parts = path.rsplit('/');
    let (name, tag) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Some(bytes) = state.tagged(tag).and_then(|release| release.assets.get(name)).cloned() else {
        return answer(stream, 404, "content-type: application/xml\r\n", b"<Error><Code>BlobNotFound</Code></Error>");
    };
    drop(state);
    let etag = format!("\"0x{:X}\"", checksum(&bytes));
    let common = format!("etag: {etag}\r\naccept-ranges: bytes\r\ncontent-type: application/octet-stream\r\n");
    if request.if_none_match.as_deref() == Some(&etag) {
        return head(stream, 304, &common);
    }
    match part(request, bytes.len(), &etag) {
        Some(from) => {
            let range = format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            answer(stream, 206, &format!("{common}{range}"), &bytes[from..])
        }
        None => answer(stream, 200, &common, &bytes),
    }
}

fn api(shared: &Shared, request: &Request, stream: &mut dyn Stream) -> io::Result<()> {
    let mut state = shared.state.lock().unwrap();
    state.note("api", request);
    let renewal = jiff::Timestamp::now().as_second() + 3600;
    let refuse = |stream: &mut dyn Stream, status: u16, headers: &str, message: &str| {
        let headers = format!("content-type: application/json; charset=utf-8\r\n{headers}");
        answer(stream, status, &headers, json!({ "message": message }).to_string().as_bytes())
    };
    if request.user_agent.is_none() {
        return refuse(stream, 403, "", "Request forbidden by administrative rules.");
    }
    let limit = if request.authorization.is_some() { 5000 } else { QUOTA };
    let over = state.spent >= limit;
    state.spent = (state.spent + 1).min(limit);
    let quota = format!(
        "x-ratelimit-limit: {limit}\r\nx-ratelimit-remaining: {}\r\nx-ratelimit-reset: {renewal}\r\n",
        limit - state.spent
    );
    if over {
        return refuse(stream, 403, &quota, "API rate limit exceeded for 127.0.0.1.");
    }
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let asked = path.strip_prefix(&format!("/repos/{REPOSITORY}/releases"));
    let described = |found: Option<&Release>| {
        let at = state.releases.iter().position(|release| found.is_some_and(|found| found.tag == release.tag))?;
        Some(state.describe(at, &state.releases[at]))
    };
    let document = match asked {
        Some("") => {
            let (list, links) = page(&state, query);
            let headers = format!("content-type: application/json; charset=utf-8\r\n{quota}{links}");
            return answer(stream, 200, &headers, list.to_string().as_bytes());
        }
        Some("/latest") => described(state.latest()),
        Some(rest) => {
            if let Some(id) = rest.strip_prefix("/assets/").and_then(|id| id.parse::<usize>().ok()) {
                let release = state.releases.get(id / 1000);
                let name = release.and_then(|release| release.assets.keys().nth(id % 1000));
                return match (release, name) {
                    (Some(release), Some(name)) => redirect(stream, &state.signed(&release.tag, name)),
                    _ => refuse(stream, 404, &quota, "Not Found"),
                };
            }
            described(rest.strip_prefix("/tags/").and_then(|tag| state.tagged(tag)))
        }
        None => None,
    };
    match document {
        Some(document) => {
            let headers = format!("content-type: application/json; charset=utf-8\r\n{quota}");
            answer(stream, 200, &headers, document.to_string().as_bytes())
        }
        None => refuse(stream, 404, &quota, "Not Found"),
    }
}

/// One page of the list, newest first, and its `Link` header.
fn page(state: &State, query: &str) -> (Value, String) {
    let number =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    let size: usize = number("per_page").unwrap_or(30).clamp(1, 100);
    let page: usize = number("page").unwrap_or(1).max(1);
    let all: Vec<(usize, &Release)> = state.releases.iter().enumerate().rev().collect();
    let last = all.len().div_ceil(size).max(1);
    let shown: Vec<Value> =
        all.iter().skip((page - 1) * size).take(size).map(|(at, release)| state.describe(*at, release)).collect();
    let link = |to: usize, rel: &str| {
        format!("<{}/repos/{REPOSITORY}/releases?per_page={size}&page={to}>; rel=\"{rel}\"", state.url(1))
    };
    let links = if page < last {
        format!("link: {}, {}\r\n", link(page + 1, "next"), link(last, "last"))
    } else {
        String::new()
    };
    (shown.into(), links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::get;

    fn from(address: SocketAddr, path: &str) -> (u16, String) {
        get(address.port(), path, "user-agent: test\r\n").unwrap()
    }

    #[test]
    fn latest_is_the_newest_that_is_no_pre_release_and_leads_over_two_redirects_to_another_host() {
        let github = FakeGitHub::start();
        github.release("v1.0.0", "first", false, &[("a.txt", b"one")]);
        github.release("v2.0.0-rc.1", "soon", true, &[("a.txt", b"two")]);
        assert_eq!(from(github.site, "/o/r/releases/latest/download/a.txt").0, 302);
        assert_eq!(github.shared.state.lock().unwrap().latest().unwrap().tag, "v1.0.0");
        let signed = github.shared.state.lock().unwrap().signed("v1.0.0", "a.txt");
        assert!(signed.starts_with("http://localhost:") && signed.contains("sig=s3cret"), "{signed}");
        let path = signed.split_once(&format!(":{}", github.store.port())).unwrap().1;
        assert_eq!(from(github.store, path), (200, "one".to_owned()));
        assert_eq!(from(github.store, path.split('?').next().unwrap()).0, 403);
        let (status, page) = from(github.site, "/o/r/releases/download/v1.0.0/none.txt");
        assert!(status == 404 && page.contains("<html>"), "{page}");
    }

    #[test]
    fn the_api_lists_in_pages_and_refuses_after_sixty_requests_an_hour() {
        let github = FakeGitHub::start();
        for number in 0..5 {
            github.release(&format!("v1.{number}.0"), "notes", false, &[]);
        }
        let list = |page: u32| -> Value {
            let (status, body) = from(github.api, &format!("/repos/o/r/releases?per_page=2&page={page}"));
            assert_eq!(status, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        };
        assert_eq!(list(1)[0]["tag_name"], "v1.4.0");
        assert_eq!(list(3)[0]["tag_name"], "v1.0.0");
        assert_eq!(list(4).as_array().unwrap().len(), 0);
        github.spend_quota();
        let (status, body) = from(github.api, "/repos/o/r/releases");
        assert!(status == 403 && body.contains("rate limit exceeded"), "{body}");
        github.renew_quota();
        list(1);
    }
}
