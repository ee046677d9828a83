//! Images, kernels, templates and API keys.

use async_trait::async_trait;
use rusqlite::{Connection, params};
use tartarus_types::Timestamp;

use super::Sqlite;
use super::row::{all, clip, json, one, signed, text, unsigned};
use crate::store::{Catalogue, ImageRecord, KernelRecord, StoreError, TemplateRecord};

const IMAGE_OF_TEMPLATE: &str = "SELECT name FROM templates WHERE image = ?1 LIMIT 1";
const IMAGE_OF_SANDBOX: &str = "SELECT id FROM sandboxes WHERE image = ?1 AND ended_at IS NULL LIMIT 1";
const KERNEL_OF_SANDBOX: &str = "SELECT id FROM sandboxes WHERE kernel = ?1 AND ended_at IS NULL LIMIT 1";
const IMAGE_NAME: &str = "SELECT name FROM images WHERE digest = ?1 AND name <> ?2 LIMIT 1";

macro_rules! select_kernels {
    ($rest:literal) => {
        concat!("SELECT digest, release, size, created_at FROM kernels ", $rest)
    };
}

/// What needs the image beside names of it.
fn image_user(conn: &Connection, digest: &str) -> Result<Option<String>, StoreError> {
    if let Some(template) = text(conn, IMAGE_OF_TEMPLATE, [digest])? {
        return Ok(Some(format!("template {template}")));
    }
    Ok(text(conn, IMAGE_OF_SANDBOX, [digest])?.map(|id| format!("sandbox {id}")))
}

fn put_image(conn: &Connection, image: &ImageRecord) -> Result<Option<String>, StoreError> {
    let before = text(conn, "SELECT digest FROM images WHERE name = ?1", [&image.name])?;
    conn.execute(
        "INSERT OR REPLACE INTO images (name, digest, size, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![image.name, image.digest, signed(image.size), image.created_at.0],
    )?;
    let Some(digest) = before.filter(|before| *before != image.digest) else {
        return Ok(None);
    };
    let used = text(conn, IMAGE_NAME, [&digest, &image.name])?.is_some() || image_user(conn, &digest)?.is_some();
    Ok((!used).then_some(digest))
}

fn remove_image(conn: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    let digest = text(conn, "SELECT digest FROM images WHERE name = ?1", [name])?
        .ok_or_else(|| StoreError::NotFound("image", clip(name, 80).to_owned()))?;
    let other_name = text(conn, IMAGE_NAME, [digest.as_str(), name])?.is_some();
    if !other_name && let Some(user) = image_user(conn, &digest)? {
        return Err(StoreError::InUse(user));
    }
    conn.execute("DELETE FROM images WHERE name = ?1", [name])?;
    Ok((!other_name).then_some(digest))
}

fn read_kernel(row: &rusqlite::Row<'_>) -> Result<KernelRecord, StoreError> {
    let size = unsigned(row.get(2)?);
    Ok(KernelRecord { digest: row.get(0)?, release: row.get(1)?, size, created_at: Timestamp(row.get(3)?) })
}

fn find_kernel(conn: &Connection, reference: &str) -> Result<KernelRecord, StoreError> {
    let shown = || clip(reference, 80).to_owned();
    if let Some(kernel) = one(conn, select_kernels!("WHERE digest = ?1"), [reference], read_kernel)? {
        return Ok(kernel);
    }
    let mut found = all(conn, select_kernels!("WHERE release = ?1 LIMIT 2"), [reference], read_kernel)?;
    let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
    if found.is_empty() && !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        let sql = select_kernels!("WHERE digest >= ?1 AND digest < ?1 || '~' LIMIT 2");
        found = all(conn, sql, [format!("sha256:{prefix}")], read_kernel)?;
    }
    match (found.pop(), found.pop()) {
        (None, _) => Err(StoreError::NotFound("kernel", shown())),
        (Some(kernel), None) => Ok(kernel),
        (Some(_), Some(_)) => Err(StoreError::Ambiguous(shown())),
    }
}

fn remove_kernel(conn: &Connection, reference: &str) -> Result<KernelRecord, StoreError> {
    let kernel = find_kernel(conn, reference)?;
    if let Some(id) = text(conn, KERNEL_OF_SANDBOX, [&kernel.digest])? {
        return Err(StoreError::InUse(format!("sandbox {id}")));
    }
    conn.execute("DELETE FROM kernels WHERE digest = ?1", [&kernel.digest])?;
    Ok(kernel)
}

fn read_template(row: &rusqlite::Row<'_>) -> Result<TemplateRecord, StoreError> {
    Ok(TemplateRecord { name: row.get(0)?, spec: json(row.get(1)?)?, created_at: Timestamp(row.get(2)?) })
}

fn find_template(conn: &Connection, name: &str) -> Result<Option<TemplateRecord>, StoreError> {
    one(conn, "SELECT name, spec, created_at FROM templates WHERE name = ?1", [name], read_template)
}

fn put_template(conn: &Connection, template: TemplateRecord) -> Result<TemplateRecord, StoreError> {
    match find_template(conn, &template.name)? {
        Some(known) if known.spec == template.spec => return Ok(known),
        Some(known) => return Err(StoreError::NameTaken(known.name)),
        None => {}
    }
    if text(conn, "SELECT name FROM images WHERE digest = ?1", [&template.spec.image])?.is_none() {
        return Err(StoreError::NotFound("image", template.spec.image));
    }
    conn.execute(
        "INSERT INTO templates (name, image, spec, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![template.name, template.spec.image, serde_json::to_string(&template.spec)?, template.created_at.0],
    )?;
    Ok(template)
}

#[async_trait]
impl Catalogue for Sqlite {
    async fn put_image(&self, image: ImageRecord) -> Result<Option<String>, StoreError> {
        self.write(move |tx| put_image(tx.conn, &image)).await
    }

    async fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.read(|conn| {
            all(conn, "SELECT name, digest, size, created_at FROM images ORDER BY name", [], |row| {
                let size = unsigned(row.get(2)?);
                Ok(ImageRecord { name: row.get(0)?, digest: row.get(1)?, size, created_at: Timestamp(row.get(3)?) })
            })
        })
        .await
    }

    async fn remove_image(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.write(move |tx| remove_image(tx.conn, &name)).await
    }

    async fn put_kernel(&self, kernel: KernelRecord) -> Result<(), StoreError> {
        self.write(move |tx| {
            // Replacing gives it the next `seq`, which makes it the newest.
            tx.conn.execute(
                "INSERT OR REPLACE INTO kernels (digest, release, size, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![kernel.digest, kernel.release, signed(kernel.size), kernel.created_at.0],
            )?;
            Ok(())
        })
        .await
    }

    async fn kernels(&self) -> Result<Vec<KernelRecord>, StoreError> {
        self.read(|conn| all(conn, select_kernels!("ORDER BY seq DESC"), [], read_kernel)).await
    }

    async fn remove_kernel(&self, reference: &str) -> Result<KernelRecord, StoreError> {
        let reference = reference.to_owned();
        self.write(move |tx| remove_kernel(tx.conn, &reference)).await
    }

    async fn put_template(&self, template: TemplateRecord) -> Result<TemplateRecord, StoreError> {
        self.write(move |tx| put_template(tx.conn, template)).await
    }

    async fn templates(&self) -> Result<Vec<TemplateRecord>, StoreError> {
        let sql = "SELECT name, spec, created_at FROM templates ORDER BY name";
        self.read(move |conn| all(conn, sql, [], read_template)).await
    }

    async fn template(&self, name: &str) -> Result<Option<TemplateRecord>, StoreError> {
        let name = name.to_owned();
        self.read(move |conn| find_template(conn, &name)).await
    }

    async fn remove_template(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |tx| {
            if tx.conn.execute("DELETE FROM templates WHERE name = ?1", [&name])? == 0 {
                return Err(StoreError::NotFound("template", clip(&name, 80).to_owned()));
            }
            Ok(())
        })
        .await
    }

    async fn put_key(&self, name: &str, hash: [u8; 32], now: Timestamp) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |tx| {
            let sql = "INSERT OR REPLACE INTO keys (name, hash, created_at) VALUES (?1, ?2, ?3)";
            tx.conn.execute(sql, params![name, hash, now.0])?;
            Ok(())
        })
        .await
    }

    async fn find_key(&self, hash: [u8; 32]) -> Result<Option<String>, StoreError> {
        self.read(move |conn| text(conn, "SELECT name FROM keys WHERE hash = ?1 LIMIT 1", [hash])).await
    }
}
