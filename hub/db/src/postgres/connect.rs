//! How the server is reached: its URL, TLS, the pool, the schema.

use super::tx::wrong;
use crate::{DbError, Options, Result};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

const OPENING: &str = "open the database";
/// The key of the advisory lock under which one replica at a time changes the schema: "PCKTHUB" in ASCII.
const MIGRATION_LOCK: i64 = 0x0050_434B_5448_5542;
/// The longest file of certificates.
const CA_FILE_MAX_BYTES: u64 = 1 << 20;
/// How long a transaction may lie open with nothing being done, before the server ends it: its locks go then.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);

mod embedded {
    refinery::embed_migrations!("migrations/postgres");
}

/// The highest version of the schema that is known here.
pub(super) fn known_schema() -> i64 {
    embedded::migrations::runner().get_migrations().iter().map(|one| i64::from(one.version())).max().unwrap_or(0)
}

fn invalid<T>(why: &str) -> Result<T> {
    Err(DbError::invalid(OPENING, why))
}

/// The URL without what the driver does not know, and what that said: `sslmode` and `sslrootcert`.
fn split(url: &str) -> (String, Option<String>, Option<String>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None, None) };
    let (mut mode, mut root, mut rest) = (None, None, Vec::new());
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => root = Some(value.replace("%2F", "/").replace("%2f", "/")),
            _ => rest.push(pair),
        }
    }
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    (format!("{base}{query}"), mode, root)
}

/// Whether all servers that are named are on this machine.
fn is_local(config: &tokio_postgres::Config) -> bool {
    let loopback =
        |name: &str| name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let local = |host: &Host| match host {
        Host::Tcp(name) => loopback(name),
        Host::Unix(_) => true,
    };
    let addresses = config.get_hostaddrs();
    config.get_hosts().iter().all(local) && addresses.iter().all(std::net::IpAddr::is_loopback)
}

/// Which mode of the driver stands for `sslmode`. What is encrypted is verified, too, whatever the mode's name: TLS with
/// anybody keeps nothing secret (libpq's `require` does not verify).
fn ssl_mode(wanted: Option<&str>, local: bool) -> Result<SslMode> {
    match wanted {
        Some("disable") => {
            if !local {
                tracing::warn!("the connection to the database is not encrypted, as its URL asks for");
            }
            Ok(SslMode::Disable)
        }
        None | Some("prefer" | "allow") if local => Ok(SslMode::Disable),
        None | Some("require" | "verify-ca" | "verify-full") => Ok(SslMode::Require),
        Some("prefer" | "allow") => invalid(
            "sslmode=prefer gives way to anybody in between; use verify-full, or disable on a network you trust",
        ),
        Some(_) => invalid("sslmode is one of disable, require, verify-ca, verify-full"),
    }
}

/// The URL as the driver takes it, with TLS decided.
fn configuration(url: &str, options: &Options) -> Result<(tokio_postgres::Config, Option<String>)> {
    let (url, mode, root) = split(url);
    // The driver's own words may hold parts of the URL.
    let Ok(mut config) = url.parse::<tokio_postgres::Config>() else {
        return invalid("the URL of the database is not of the form postgres://user:password@host:port/database");
    };
    if config.get_hosts().is_empty() {
        return invalid("the URL of the database names no host");
    }
    let mode = ssl_mode(mode.as_deref(), is_local(&config))?;
    config.ssl_mode(mode).connect_timeout(options.connect).application_name("picket-hub");
    if !url.contains("target_session_attrs=") {
        // Of several servers, or of a name that leads to one or the other: the one that takes writes.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(30));
    Ok((config, root))
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |why: String| DbError::Invalid {
        operation: OPENING,
        why: format!("the file of certificates {} cannot be used ({why})", path.display()),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(CA_FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong("there is none in it".into())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// TLS that verifies the server's certificate and name.
fn tls(ca_file: Option<&Path>) -> Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in read_roots(path)? {
                roots.add(certificate).map_err(|error| DbError::invalid(OPENING, error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| DbError::invalid(OPENING, error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// What every session is told.
fn session(options: &Options) -> String {
    format!(
        "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}; SET client_min_messages = warning; \
         SET jit = off; SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') = 'off'",
        options.statement.as_millis(),
        IDLE_IN_TRANSACTION.as_millis(),
    )
}

/// Opens the pool, after the schema was brought up to date.
pub(super) async fn open(url: &str, options: &Options) -> Result<Pool> {
    let (config, root) = configuration(url, options)?;
    let tls = if config.get_ssl_mode() == SslMode::Disable {
        // Nothing is encrypted, and so nothing verified: no certificates are looked for.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| DbError::invalid(OPENING, error.to_string()))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        MakeRustlsConnect::new(config)
    } else {
        tls(options.ca_file.as_deref().or(root.as_deref().map(Path::new)))?
    };
    migrate(&config, tls.clone(), options).await?;
    let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let session = session(options);
    let hook = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
        let session = session.clone();
        Box::pin(async move { client.batch_execute(&session).await.map_err(HookError::Backend) })
    });
    Pool::builder(manager)
        .max_size(options.connections.max(2))
        .wait_timeout(Some(options.wait))
        .create_timeout(Some(options.connect))
        .recycle_timeout(Some(options.connect))
        .runtime(Runtime::Tokio1)
        .post_create(hook)
        .build()
        .map_err(|error| DbError::Io { operation: OPENING, why: error.to_string() })
}

/// Brings the schema up to date, one replica at a time.
async fn migrate(config: &tokio_postgres::Config, tls: MakeRustlsConnect, options: &Options) -> Result<()> {
    let doing = |error: tokio_postgres::Error| wrong(OPENING, &error).error;
    let (mut client, connection) = config.connect(tls).await.map_err(doing)?;
    let driver = tokio::spawn(connection);
    let done = migrate_on(&mut client, options).await;
    // The lock goes with the connection.
    drop(client);
    driver.abort();
    done
}

async fn migrate_on(client: &mut tokio_postgres::Client, options: &Options) -> Result<()> {
    let doing = |error: tokio_postgres::Error| wrong("prepare the database", &error).error;
    if client.query_one("SHOW fsync", &[]).await.map_err(doing)?.get::<_, &str>(0) == "off" {
        tracing::warn!(
            "the database server runs with fsync=off: a power cut there loses events that were acknowledged"
        );
    }
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await.map_err(doing)?;
    let exists = "SELECT to_regclass('refinery_schema_history') IS NOT NULL";
    let known = known_schema();
    let found = if client.query_one(exists, &[]).await.map_err(doing)?.get(0) {
        let sql = "SELECT coalesce(max(version), 0)::bigint FROM refinery_schema_history";
        client.query_one(sql, &[]).await.map_err(doing)?.get(0)
    } else {
        0_i64
    };
    if found > known {
        return Err(DbError::Newer { found, known });
    }
    if found == known {
        return Ok(());
    }
    if !options.migrate {
        let why = format!("the database has schema {found} and not {known}; start the hub once to bring it up to date");
        return Err(DbError::invalid("prepare the database", why));
    }
    embedded::migrations::runner().run_async(client).await.map(drop).map_err(|error| {
        let cause = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
        let other = || DbError::Io { operation: "prepare the database", why: error.to_string() };
        cause.map_or_else(other, |cause| wrong("prepare the database", cause).error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> Result<SslMode> {
        configuration(url, &Options::default()).map(|(config, _)| config.get_ssl_mode())
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_clear_without_being_asked() {
        assert_eq!(mode("postgres://u@127.0.0.1/d").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@localhost/d").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@[::1]/d").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@%2Frun%2Fpostgresql/d").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@db.example/d").unwrap(), SslMode::Require);
        assert_eq!(mode("postgres://u@127.0.0.1,db.example/d").unwrap(), SslMode::Require);
        assert_eq!(mode("postgres://u@db.example/d?sslmode=disable").unwrap(), SslMode::Disable);
        for verified in ["require", "verify-ca", "verify-full"] {
            assert_eq!(mode(&format!("postgres://u@127.0.0.1/d?sslmode={verified}")).unwrap(), SslMode::Require);
        }
        assert!(mode("postgres://u@db.example/d?sslmode=prefer").is_err());
        assert!(mode("postgres://u@db.example/d?sslmode=x").is_err());
    }

    #[test]
    fn a_server_that_takes_writes_is_looked_for_unless_the_url_says_otherwise() {
        let wanted = |url: &str| configuration(url, &Options::default()).unwrap().0.get_target_session_attrs();
        assert_eq!(wanted("postgres://u@127.0.0.1,127.0.0.2/d"), TargetSessionAttrs::ReadWrite);
        assert_eq!(wanted("postgres://u@127.0.0.1/d?target_session_attrs=any"), TargetSessionAttrs::Any);
    }

    #[test]
    fn what_the_driver_does_not_know_is_taken_out_of_the_url() {
        let (url, mode, root) =
            split("postgres://u@h/d?connect_timeout=3&sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem");
        assert_eq!(url, "postgres://u@h/d?connect_timeout=3");
        assert_eq!((mode.as_deref(), root.as_deref()), (Some("verify-full"), Some("/etc/ca.pem")));
    }
}
