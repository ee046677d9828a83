//! Calls about images, kernels, templates and the machine.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::TryStreamExt;
use reqwest::{Body, Method, Url};

use super::repeat::Repeat;
use super::{ANSWER, Client, ClientError};
use crate::doctor::DoctorReport;
use crate::node::ByteStream;
use crate::v1::{CreateTemplate, DiskUsage, Image, Kernel, Prune, Pruned, Template};

/// Probing boots a kernel under each accelerator.
const DOCTOR: Duration = Duration::from_secs(180);
/// Many files may go.
const PRUNE: Duration = Duration::from_secs(600);

impl Client {
    /// Makes an image of a root file system's tar, and gives it `name`. An error of the stream ends the upload, and
    /// nothing is made.
    ///
    /// # Errors
    /// [`ClientError`]; `bad_file`.
    pub async fn import_image(&self, name: &str, tar: ByteStream) -> Result<Image, ClientError> {
        let mut url = self.path(&["images"])?;
        url.query_pairs_mut().append_pair("name", name);
        self.upload(&url, tar).await
    }

    /// Adds a kernel from a tar with `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`.
    ///
    /// # Errors
    /// [`ClientError`]; `bad_file`.
    pub async fn add_kernel(&self, tar: ByteStream) -> Result<Kernel, ClientError> {
        self.upload(&self.path(&["kernels"])?, tar).await
    }

    /// No time limit: a tar may be large, its maker slow. The connection's keepalive finds a server that is gone.
    async fn upload<T: serde::de::DeserializeOwned>(&self, url: &Url, tar: ByteStream) -> Result<T, ClientError> {
        let broken = Arc::new(OnceLock::new());
        let tar = tar.inspect_err({
            let broken = Arc::clone(&broken);
            move |cause| _ = broken.set(cause.to_string())
        });
        let request = self.request(Method::POST, url).header("content-type", "application/x-tar");
        let answer = self.once(request.body(Body::wrap_stream(tar))).await.map_err(|failure| match broken.get() {
            Some(cause) => ClientError::Protocol(format!("the upload was given up: {cause}")),
            None => failure.error,
        })?;
        self.decode(&answer.body)
    }

    /// All images.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.get(&self.path(&["images"])?).await
    }

    /// Deletes an image.
    ///
    /// # Errors
    /// [`ClientError`]; `in_use`.
    pub async fn remove_image(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&self.path(&["images", name])?).await.map(drop)
    }

    /// All kernels.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn kernels(&self) -> Result<Vec<Kernel>, ClientError> {
        self.get(&self.path(&["kernels"])?).await
    }

    /// Deletes a kernel, named by its digest or release.
    ///
    /// # Errors
    /// [`ClientError`]; `in_use`.
    pub async fn remove_kernel(&self, kernel: &str) -> Result<(), ClientError> {
        self.delete(&self.path(&["kernels", kernel])?).await.map(drop)
    }

    /// Makes a template; the same again changes nothing.
    ///
    /// # Errors
    /// [`ClientError`]; `name_taken` when there is another of that name.
    pub async fn create_template(&self, wanted: &CreateTemplate) -> Result<Template, ClientError> {
        Ok(self.make_template(wanted).await?.0)
    }

    /// The same, and whether it was this call that made it. When an answer was lost on the way that says no.
    ///
    /// # Errors
    /// As [`Client::create_template`].
    pub async fn make_template(&self, wanted: &CreateTemplate) -> Result<(Template, bool), ClientError> {
        let url = self.path(&["templates"])?;
        let make = || self.request(Method::POST, &url).json(wanted).timeout(ANSWER);
        let answer = self.send(Repeat::Always, make, |_| false).await?;
        let made = answer.as_ref().is_some_and(|answer| answer.status == 201);
        Ok((self.decode(&answer.map(|answer| answer.body).unwrap_or_default())?, made))
    }

    /// Makes a template's golden snapshots anew; the old ones are used until then.
    ///
    /// # Errors
    /// [`ClientError`]; `not_found`, `not_ready` when there is no guest kernel.
    pub async fn rebuild_template(&self, name: &str) -> Result<Template, ClientError> {
        let url = self.path(&["templates", name, "rebuild"])?;
        self.json(Repeat::Always, || self.request(Method::POST, &url).timeout(ANSWER)).await
    }

    /// All templates.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        self.get(&self.path(&["templates"])?).await
    }

    /// One template.
    ///
    /// # Errors
    /// [`ClientError`]; `not_found`.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.get(&self.path(&["templates", name])?).await
    }

    /// Deletes a template; sandboxes made from it go on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_template(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&self.path(&["templates", name])?).await.map(drop)
    }

    /// Deletes this template; one of the same name that was made since stays.
    ///
    /// # Errors
    /// [`ClientError`]; `name_taken` when it is another one by now.
    pub async fn take_back_template(&self, template: &Template) -> Result<(), ClientError> {
        let mut url = self.path(&["templates", &template.name])?;
        url.query_pairs_mut().append_pair("created_at", &template.created_at.0.to_string());
        self.delete(&url).await.map(drop)
    }

    /// What takes how much space.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn disk_usage(&self) -> Result<DiskUsage, ClientError> {
        self.get(&self.path(&["df"])?).await
    }

    /// Deletes what nothing needs any more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prune(&self, wanted: &Prune) -> Result<Pruned, ClientError> {
        let url = self.path(&["prune"])?;
        self.json(Repeat::Always, || self.request(Method::POST, &url).json(wanted).timeout(PRUNE)).await
    }

    /// What the machine can do; `reprobe` forgets what was found before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn doctor(&self, reprobe: bool) -> Result<DoctorReport, ClientError> {
        let mut url = self.path(&["doctor"])?;
        url.query_pairs_mut().append_pair("reprobe", if reprobe { "true" } else { "false" });
        self.json(Repeat::Always, || self.request(Method::GET, &url).timeout(DOCTOR)).await
    }
}
