//! Whether keys and database belong together.
//!
//! A hub that starts with its keys on an empty database, or on another hub's, knows none of its agents, and would tell each
//! that its identity is lost. So the database keeps the pins of the roots it was used with, and the folder of keys keeps
//! that machines were enrolled with them. A new hub, an update of one from before this was kept, and the roll-over from one
//! root to the next (two roots at a time) pass; anything else is refused until somebody says that it is meant.

use super::own_events::HUB_KIND;
use crate::authority::KeysFolder;
use jiff::Timestamp;
use picket_hub_db::{AgentFilter, Database, DbError, PageRequest, TenantId};
use picket_pki::SpkiPin;
use std::path::PathBuf;

/// Under which key of the settings the pins are kept: those of the present roots first.
const PINS: &str = "authority/pins";
/// How many pins are kept: a root lasts for years.
const MAX_PINS: usize = 16;
/// The file beside the keys that says that machines were enrolled with them.
pub(crate) const ENROLLED: &str = "machines-enrolled";
/// The file beside the keys with which somebody says that keys and database are meant as they are.
const ACCEPT: &str = "accept-database";

/// Keys and database that do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum BelongingError {
    /// The database was used with other roots.
    #[error(
        "the database belongs to the hub of root {}, and the keys in {} are of {}; put back the keys that belong to it, or \
         name the right database. If both are meant as they are, after which every machine has to enrol again: touch {}",
        list(kept), keys.display(), list(own), accept.display()
    )]
    Other {
        /// The pins that the database knows.
        kept: Vec<String>,
        /// Those of the keys.
        own: Vec<String>,
        /// Where the keys lie.
        keys: PathBuf,
        /// What says that it is meant.
        accept: PathBuf,
    },
    /// The database is empty, and the keys are not new.
    #[error(
        "machines were enrolled with the keys in {}, and the database knows none of them; name the right database, or \
         restore it from a backup. If it is lost, after which every machine has to enrol again: touch {}",
        keys.display(), accept.display()
    )]
    Empty {
        /// Where the keys lie.
        keys: PathBuf,
        /// What says that it is meant.
        accept: PathBuf,
    },
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// How a database keeps whose it is, as key and value of a setting: for a backup of another hub that these keys take over.
pub fn kept_as(pins: &[SpkiPin]) -> (String, Vec<u8>) {
    let pins: Vec<String> = pins.iter().map(SpkiPin::to_hex).collect();
    (PINS.to_owned(), serde_json::to_vec(&pins).unwrap_or_default())
}

fn list(pins: &[String]) -> String {
    pins.join(", ")
}

/// Refuses keys and database that do not belong together, and notes those that do.
///
/// # Errors
/// [`BelongingError`], with the way out.
pub async fn check(
    db: &dyn Database,
    tenant: TenantId,
    pins: &[SpkiPin],
    folder: &KeysFolder,
    now: Timestamp,
) -> Result<(), BelongingError> {
    let own: Vec<String> = pins.iter().map(SpkiPin::to_hex).collect();
    let (keys, accept) = (folder.dir().to_owned(), folder.path(ACCEPT));
    let meant = accept.exists();
    let kept = db.setting(tenant, PINS).await?;
    let known: Vec<String> =
        kept.as_ref().and_then(|kept| serde_json::from_slice(&kept.value).ok()).unwrap_or_default();
    if !meant {
        if known.is_empty() {
            if folder.path(ENROLLED).exists() && !has_machines(db, tenant).await? {
                return Err(BelongingError::Empty { keys, accept });
            }
        } else if !known.iter().any(|pin| own.contains(pin)) {
            return Err(BelongingError::Other { kept: known, own, keys, accept });
        }
    }
    // Old pins stay: a replica that has not taken over the new root belongs here, too.
    let all: Vec<&String> = own.iter().chain(known.iter().filter(|pin| !own.contains(pin))).take(MAX_PINS).collect();
    if !own.iter().all(|pin| known.contains(pin)) {
        let value = serde_json::to_vec(&all).unwrap_or_default();
        match db.put_setting(tenant, PINS, &value, Some(kept.map_or(0, |kept| kept.revision)), now).await {
            Ok(_) => {}
            // A replica of the same keys does the same at the same time; the next start looks again.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if meant {
        tracing::warn!(pins = ?own, "keys and database are taken as they are, as somebody asked for");
        if let Err(error) = picket_durable::remove_if_present(&accept) {
            tracing::warn!(%error, "the file that says so stays; remove it");
        }
    }
    Ok(())
}

/// Notes beside the keys that machines were enrolled with them, once there are any. Says whether that is done.
///
/// # Errors
/// When the database does not answer.
pub async fn note_machines(db: &dyn Database, tenant: TenantId, folder: &KeysFolder) -> Result<bool, DbError> {
    let path = folder.path(ENROLLED);
    if path.exists() {
        return Ok(true);
    }
    if !has_machines(db, tenant).await? {
        return Ok(false);
    }
    let text = b"Machines were enrolled with these keys: they belong to the hub's database.\n";
    if let Err(error) = picket_durable::write_atomic(&path, text, 0o644) {
        // A folder that only can be read: nothing is lost but the warning before a mistake.
        tracing::info!(%error, "that machines were enrolled is not noted beside the keys");
    }
    Ok(true)
}

/// Whether there is or was any agent but the hub itself.
async fn has_machines(db: &dyn Database, tenant: TenantId) -> Result<bool, DbError> {
    // The hub is one agent; a second one is a machine.
    let page = db.agents(tenant, &AgentFilter::default(), &PageRequest::first(2)).await?;
    Ok(page.items.iter().any(|agent| agent.kind != HUB_KIND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::own_events::HUB_AGENT;
    use picket_hub_db::{NewAgent, Options, open};
    use std::sync::Arc;
    use uuid::Uuid;

    const T: TenantId = TenantId::DEFAULT;

    struct Bench {
        dir: tempfile::TempDir,
        folder: KeysFolder,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = KeysFolder::new(dir.path().join("keys"));
            picket_durable::create_dir(folder.dir(), 0o700).unwrap();
            Self { dir, folder }
        }

        async fn database(&self, name: &str) -> Arc<dyn Database> {
            let location = format!("sqlite:{}", self.dir.path().join(name).display());
            let db = open(&location, &Options::default()).await.unwrap();
            db.ensure_default_tenant(Timestamp::now()).await.unwrap();
            db
        }

        async fn check(&self, db: &Arc<dyn Database>, pins: &[SpkiPin]) -> Result<(), BelongingError> {
            check(&**db, T, pins, &self.folder, Timestamp::now()).await
        }
    }

    async fn agent(db: &Arc<dyn Database>, id: Uuid, kind: &str) {
        let (name, kind) = (id.to_string(), kind.to_owned());
        let new = NewAgent { id, name, kind, tags: [].into(), config: serde_json::json!({}) };
        db.create_agent(T, &new, Timestamp::now()).await.unwrap();
    }

    fn pin(text: &str) -> SpkiPin {
        SpkiPin::of_spki(text.as_bytes())
    }

    #[tokio::test]
    async fn keys_that_machines_were_enrolled_with_do_not_start_on_an_empty_database() {
        let bench = Bench::new();
        let (db, own) = (bench.database("one").await, [pin("root")]);
        bench.check(&db, &own).await.unwrap();
        agent(&db, HUB_AGENT, HUB_KIND).await;
        assert!(!note_machines(&*db, T, &bench.folder).await.unwrap(), "the hub is no machine");
        // Nothing was enrolled yet: whoever moves to another database may.
        bench.check(&bench.database("two").await, &own).await.unwrap();
        agent(&db, Uuid::now_v7(), "server").await;
        assert!(note_machines(&*db, T, &bench.folder).await.unwrap());
        bench.check(&db, &own).await.unwrap();

        let empty = bench.database("three").await;
        let refused = bench.check(&empty, &own).await.unwrap_err();
        assert!(matches!(refused, BelongingError::Empty { .. }), "{refused}");
        assert!(refused.to_string().contains("restore") && refused.to_string().contains("touch "), "{refused}");
        bench.check(&empty, &own).await.unwrap_err();
        picket_durable::write_atomic(&bench.folder.path(ACCEPT), b"", 0o600).unwrap();
        bench.check(&empty, &own).await.unwrap();
        assert!(!bench.folder.path(ACCEPT).exists(), "it was meant once");
        bench.check(&empty, &own).await.unwrap();
    }

    #[tokio::test]
    async fn a_database_of_another_hub_is_refused_and_a_root_that_follows_another_is_not() {
        let bench = Bench::new();
        let db = bench.database("one").await;
        let (old, new, other) = (pin("old"), pin("new"), pin("other"));
        bench.check(&db, &[old]).await.unwrap();
        let refused = bench.check(&db, &[other]).await.unwrap_err();
        assert!(refused.to_string().contains(&old.to_hex()), "{refused}");
        bench.check(&db, &[new, old]).await.unwrap();
        bench.check(&db, &[old]).await.unwrap();
        bench.check(&db, &[new]).await.unwrap();
        bench.check(&db, &[other]).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_database_from_before_this_was_kept_is_taken_over() {
        let bench = Bench::new();
        let db = bench.database("one").await;
        agent(&db, HUB_AGENT, HUB_KIND).await;
        agent(&db, Uuid::now_v7(), "server").await;
        assert!(note_machines(&*db, T, &bench.folder).await.unwrap());
        bench.check(&db, &[pin("root")]).await.unwrap();
        bench.check(&db, &[pin("other")]).await.unwrap_err();
    }
}
