//! Which releases a GitHub repository has, with their notes: its API's list, read by `self_update` over our own HTTP client.
//!
//! What is listed here is GitHub's word. It is for people to read: what is taken is decided by signed metadata alone.

use crate::fetch::Location;
use picket_protocol::TargetTriple;
use picket_transport::{Client, Request, SafeUrl, TransportError, UrlError};
use self_update::backends::github::ReleaseList;
use self_update::http_client::{HeaderMap, HttpClient, HttpResponse, header};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The most releases that are listed.
pub const MAX_LISTED: usize = 300;
/// How many releases are on one page: the most that the API gives ("List releases", docs.github.com).
const PAGE: usize = 100;
/// The longest page, in bytes: what `self_update` reads of one.
const MAX_PAGE_BYTES: u64 = 4 << 20;
/// The longest notes of one release, in characters.
const MAX_NOTES: usize = 8_000;
/// The longest other text, in characters.
const MAX_TEXT: usize = 300;

/// One release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its version.
    pub version: Version,
    /// What it is called.
    pub name: String,
    /// When it was made, as the server writes it (RFC 3339).
    pub date: String,
    /// What changed, for people.
    pub notes: String,
    /// Its page, for people.
    pub page: Option<String>,
    /// Whether there is a build for this machine among its files.
    pub fits: bool,
}

impl Listed {
    /// The same, with a stranger's words cut and stripped once more.
    pub(crate) fn cleaned(self) -> Self {
        let short = |words: &str| text(words, MAX_TEXT);
        Self {
            name: short(&self.name),
            date: short(&self.date),
            notes: text(&self.notes, MAX_NOTES),
            page: self.page.as_deref().map(short),
            ..self
        }
    }
}

/// Where the API of a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryApi {
    base: SafeUrl,
    owner: String,
    name: String,
}

impl RepositoryApi {
    /// The API of the repository that `location` is; `None` for a release tree, which has none. Without `base`
    /// (`update.releases_api`) it is `https://api.github.com` for github.com and `/api/v3` of any other host
    /// ("GitHub Enterprise Server REST API", docs.github.com).
    ///
    /// # Errors
    /// When `base` is no address that may be asked.
    pub fn of(location: &Location, base: &str) -> Result<Option<Self>, UrlError> {
        let Location::GitHub(repository) = location else { return Ok(None) };
        let uri = repository.as_uri();
        let base = match base.trim().trim_end_matches('/') {
            "" if is_github(repository) => "https://api.github.com".to_owned(),
            "" => {
                let authority = uri.authority().map_or("", http::uri::Authority::as_str);
                format!("{}://{authority}/api/v3", uri.scheme_str().unwrap_or("https"))
            }
            base => base.to_owned(),
        };
        let mut parts = uri.path().trim_matches('/').rsplit('/').map(str::to_owned);
        let (name, owner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        Ok(Some(Self { base: base.parse()?, owner, name }))
    }

    /// Its address.
    pub fn base(&self) -> &SafeUrl {
        &self.base
    }

    /// The variables whose first one that is set has a token for it, as the tool `gh` has them ("gh help environment"): one
    /// for github.com is not for another host.
    pub fn token_variables(&self) -> [&'static str; 2] {
        if self.base.as_uri().host() == Some("api.github.com") {
            ["GH_TOKEN", "GITHUB_TOKEN"]
        } else {
            ["GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN"]
        }
    }

    /// The newest releases, at most `limit` of them; `target` is what this machine's builds are called by.
    ///
    /// # Errors
    /// When the API does not answer, or not with a list.
    pub fn list(
        &self,
        client: &Client,
        token: Option<&Token>,
        limit: usize,
        target: &TargetTriple,
    ) -> Result<Vec<Listed>, TransportError> {
        let limit = limit.min(MAX_LISTED);
        let ours = OverOurs {
            client: client.clone(),
            base: self.base.clone(),
            token: token.cloned(),
            pages: AtomicUsize::new(limit.div_ceil(PAGE)),
        };
        let asked = ReleaseList::configure()
            .repo_owner(&self.owner)
            .repo_name(&self.name)
            .api_base_url(self.base.as_uri().to_string().trim_end_matches('/'))
            .http_client(Arc::new(ours))
            .build();
        let releases = asked.and_then(|list| list.fetch()).map_err(|error| self.told(error))?;
        let listed = releases.into_vec().into_iter().filter_map(|release| {
            Some(Listed {
                version: release.version().parse().ok()?,
                name: text(release.name(), MAX_TEXT),
                date: text(release.date(), MAX_TEXT),
                notes: text(release.body().unwrap_or_default(), MAX_NOTES),
                page: release.release_notes_url().map(|url| text(url, MAX_TEXT)),
                fits: release.has_target_asset(&target.to_string()),
            })
        });
        Ok(listed.take(limit).collect())
    }

    /// Our own error where it was one; else what the library could not read.
    fn told(&self, error: self_update::Error) -> TransportError {
        let reason = error.to_string();
        if let self_update::Error::Transport(source) = error
            && let Ok(ours) = source.downcast::<TransportError>()
        {
            return *ours;
        }
        TransportError::Broken {
            url: self.base.clone(),
            reason: text(&format!("it is no list of releases: {reason}"), MAX_TEXT),
        }
    }
}

fn is_github(repository: &SafeUrl) -> bool {
    repository.as_uri().host() == Some("github.com")
}

/// A token for the API. It is shown nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The token in `text`, if there is one that can be sent.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// `self_update`'s requests over our client: to one server, so many, of bounded answers.
struct OverOurs {
    client: Client,
    base: SafeUrl,
    token: Option<Token>,
    /// How many pages may still be asked for.
    pages: AtomicUsize,
}

impl HttpClient for OverOurs {
    fn get(&self, url: &str, _: &HeaderMap, _: Option<Duration>) -> self_update::Result<Box<dyn HttpResponse>> {
        let failed = |error: TransportError| self_update::Error::transport(error);
        let url: SafeUrl = url.parse().map_err(|error: UrlError| failed(error.into()))?;
        if !url.is_on_server_of(&self.base) {
            // The next page of a list is on the same server; a token goes to no other.
            let reason = "it leads to another server".to_owned();
            return Err(failed(TransportError::Broken { url: self.base.clone(), reason }));
        }
        let authorization = self.token.as_ref().map(|token| format!("Bearer {}", token.0));
        let request =
            Request { expects: Some(MAX_PAGE_BYTES), authorization: authorization.as_deref(), ..Request::default() };
        let response = self.client.get(&url, &request).map_err(failed)?;
        let left = self.pages.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        let mut headers = HeaderMap::new();
        // Who is not told of a next page does not ask for it.
        if left > 0
            && let Some(link) = response.link.as_deref().and_then(|link| link.parse().ok())
        {
            headers.insert(header::LINK, link);
        }
        let body = response.read(MAX_PAGE_BYTES).map_err(failed)?;
        Ok(Box::new(Page { headers, body }))
    }
}

/// One page, whole.
struct Page {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl HttpResponse for Page {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn body(self: Box<Self>) -> Box<dyn Read> {
        Box::new(Cursor::new(self.body))
    }
}

/// A stranger's words: short, and without what could forge lines or move a terminal's cursor.
pub(crate) fn text(words: &str, limit: usize) -> String {
    let words = words.replace("\r\n", "\n");
    words.chars().filter(|c| *c == '\n' || !c.is_control()).take(limit).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(releases: &str, base: &str) -> Option<RepositoryApi> {
        RepositoryApi::of(&Location::parse(releases).unwrap(), base).unwrap()
    }

    #[test]
    fn an_api_is_found_by_the_repositorys_host_unless_it_is_named() {
        let base = |releases: &str, named: &str| api(releases, named).unwrap().base().to_string();
        assert_eq!(base("https://github.com/o/r", ""), "https://api.github.com/");
        assert_eq!(base("github+https://git.example.com/o/r", ""), "https://git.example.com/api/v3");
        assert_eq!(
            base("github+https://git.example.com/o/r", "https://api.example.com/x/"),
            "https://api.example.com/x"
        );
        assert_eq!(api("https://releases.example.com/picket", ""), None);
        let found = api("https://github.com/o/r", "").unwrap();
        assert_eq!((found.owner.as_str(), found.name.as_str()), ("o", "r"));
        let http = RepositoryApi::of(&Location::parse("https://github.com/o/r").unwrap(), "http://api.example.com");
        assert!(http.is_err(), "a token would go over the network in the open");
    }

    #[test]
    fn a_token_of_github_is_for_github_alone_and_shown_nowhere() {
        assert_eq!(api("https://github.com/o/r", "").unwrap().token_variables(), ["GH_TOKEN", "GITHUB_TOKEN"]);
        let other = api("github+https://git.example.com/o/r", "").unwrap();
        assert_eq!(other.token_variables(), ["GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN"]);
        // A proxy of GitHub's that somebody named is not GitHub.
        let named = api("https://github.com/o/r", "https://mirror.example.com").unwrap();
        assert_eq!(named.token_variables(), ["GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN"]);
        assert_eq!(format!("{:?}", Token::new(" ghp_s3cret\n").unwrap()), "Token(…)");
        assert_eq!((Token::new(" "), Token::new("a b")), (None, None));
    }

    #[test]
    fn a_strangers_words_are_cut_and_move_no_cursor() {
        assert_eq!(text("one\r\ntwo\u{1b}[2J\u{7}\n", 100), "one\ntwo[2J");
        assert_eq!(text(&"x".repeat(1_000), 10).len(), 10);
    }
}
