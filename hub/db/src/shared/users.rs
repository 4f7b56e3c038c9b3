//! People over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by};
use super::{Engine, Row, Store, Tx, params};
use crate::{Hidden, NewUser, Page, PageRequest, Result, Revision, TenantId, User, UserStatus, UserUpdate, Users};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str =
    "id, name, display_name, password, must_change, status, revision, created_at, updated_at, last_login";
const BY_NAME: Order = by("users", &[("name", Key::Text), ("id", Key::Uuid)]);

fn user(row: &Row) -> Result<User> {
    Ok(User {
        id: row.uuid(0)?,
        name: row.text(1)?,
        display_name: row.text(2)?,
        password: row.opt_text(3)?.map(Hidden),
        must_change: row.bool(4)?,
        status: row.word(5, UserStatus::from_word)?,
        revision: row.int(6)?,
        created_at: row.time(7)?,
        updated_at: row.time(8)?,
        last_login: row.opt_time(9)?,
    })
}

fn find(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, lock: bool) -> Result<Option<User>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {COLUMNS} FROM users WHERE tenant_id = $1 AND id = $2 {lock}");
    tx.row(&sql, params![tenant, id])?.as_ref().map(user).transpose()
}

fn update(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: Uuid,
    revision: Revision,
    update: &UserUpdate,
    now: Timestamp,
) -> Result<User> {
    let current = find(tx, tenant, id, true)?.ok_or_else(|| tx.not_found(format!("user {id}")))?;
    if current.revision != revision {
        return Err(tx.conflict(format!("user {id}")));
    }
    let password = update.password.as_ref().or(current.password.as_ref());
    let status = update.status.unwrap_or(current.status);
    tx.execute(
        "UPDATE users SET display_name = $3, password = $4, must_change = $5, status = $6, revision = revision + 1, \
         updated_at = $7 WHERE tenant_id = $1 AND id = $2",
        params![
            tenant,
            id,
            update.display_name.as_ref().unwrap_or(&current.display_name),
            password.map(|password| &password.0),
            update.must_change.unwrap_or(current.must_change),
            status.as_str(),
            now,
        ],
    )?;
    if update.password.is_some() || status == UserStatus::Disabled {
        tx.execute("DELETE FROM sessions WHERE tenant_id = $1 AND user_id = $2", params![tenant, id])?;
    }
    find(tx, tenant, id, false)?.ok_or_else(|| tx.not_found(format!("user {id}")))
}

#[async_trait]
impl<E: Engine> Users for Store<E> {
    async fn create_user(&self, tenant: TenantId, new: &NewUser, now: Timestamp) -> Result<User> {
        let new = new.clone();
        self.engine
            .write("add a user", move |tx| {
                let row = tx.row(
                    &format!(
                        "INSERT INTO users (tenant_id, id, name, display_name, password, must_change, status, revision, \
                         created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, 'active', 1, $7, $7) \
                         ON CONFLICT DO NOTHING RETURNING {COLUMNS}"
                    ),
                    params![
                        tenant,
                        new.id,
                        &new.name,
                        &new.display_name,
                        new.password.as_ref().map(|password| &password.0),
                        new.must_change,
                        now,
                    ],
                )?;
                user(&row.ok_or_else(|| tx.conflict(format!("user {}", new.name)))?)
            })
            .await
    }

    async fn user(&self, tenant: TenantId, id: Uuid) -> Result<Option<User>> {
        self.engine.read("read a user", move |tx| find(tx, tenant, id, false)).await
    }

    async fn user_by_name(&self, tenant: TenantId, name: &str) -> Result<Option<User>> {
        let name = name.to_owned();
        self.engine
            .read("find a user", move |tx| {
                let sql = format!("SELECT {COLUMNS} FROM users WHERE tenant_id = $1 AND name = $2");
                tx.row(&sql, params![tenant, &name])?.as_ref().map(user).transpose()
            })
            .await
    }

    async fn users(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<User>> {
        let page = page.clone();
        self.engine
            .read("list users", move |tx| Select::new(COLUMNS, "users", tenant).page(tx, &BY_NAME, &page, user))
            .await
    }

    async fn update_user(
        &self,
        tenant: TenantId,
        id: Uuid,
        revision: Revision,
        changes: &UserUpdate,
        now: Timestamp,
    ) -> Result<User> {
        let changes = changes.clone();
        self.engine.write("change a user", move |tx| update(tx, tenant, id, revision, &changes, now)).await
    }

    async fn user_signed_in(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<()> {
        self.engine
            .write("note that a user signed in", move |tx| {
                let sql = "UPDATE users SET last_login = $3 WHERE tenant_id = $1 AND id = $2";
                tx.execute(sql, params![tenant, id, now]).map(drop)
            })
            .await
    }

    async fn delete_user(&self, tenant: TenantId, id: Uuid) -> Result<bool> {
        self.engine
            .write("remove a user", move |tx| {
                tx.execute(
                    "DELETE FROM permissions WHERE tenant_id = $1 AND principal = $2",
                    params![tenant, format!("user:{id}")],
                )?;
                tx.changes("DELETE FROM users WHERE tenant_id = $1 AND id = $2", params![tenant, id])
            })
            .await
    }
}
